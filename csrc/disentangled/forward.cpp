// Disentangled attention forward over threads. Each task writes its own rows alone: the same bits for any
// number of threads, and whatever else is in the batch.
//
// Of a head's keys come numbers for the rows of positions that its sequence reads, (n, R'); a tile of its
// queries makes its own, and of both a dense bias, which the kernels of attention take. Sequences of one
// tile go through all of it in one task, so that nothing leaves the cache; of longer ones all keys
// have their numbers before a tile reads them.

#include <algorithm>
#include <memory>
#include <vector>

#include "attention/plan.h"
#include "disentangled/arguments.h"
#include "shared/flush.h"
#include "shared/isa.h"
#include "shared/parallel.h"

namespace pyenc {
PYENC_KERNEL_TABLE(DisentangledKernels, disentangled_kernels)
PYENC_KERNEL_TABLE_WITH_AMX(AttentionForwardKernels, attention_forward_kernels)

namespace {

// Longer sequences are taken in groups: of kTilesPerThread, and of so many floats of keys' numbers beyond
// that.
constexpr std::int64_t kGroupFloats = 1 << 20;

std::int64_t strips(std::int64_t numbers) { return (numbers + kStrip - 1) / kStrip * kStrip; }

class Positions {
 public:
  Positions(const Attention& call, const PositionTables& tables) : call_(call), tables_(tables) {}

  // The rows [low, low + width) of the tables that a head reads, whole strips.
  struct Rows {
    std::int64_t low, width;
  };

  Rows rows_of(const AttentionHead& head) const {
    const std::int64_t reach = place(head, head.n - 1);
    const std::int64_t low = row(-reach), width = strips(row(reach) + 1 - low);
    return {std::min(low, tables_.n_rows - width), width};
  }

  static std::int64_t keys_size(const AttentionHead& head, Rows rows) {
    return head.n * rows.width + kSpare;
  }

  // Floats of scratch for one tile.
  std::int64_t tile_size(const AttentionHead& head, Rows rows) const {
    const std::int64_t count = std::min(head.n, kQueryTile);
    const std::int64_t places = call_.contiguous ? count + head.n : count * head.n;
    return kTokens * rows.width + kSpare + count * head.n + 2 * places;
  }

  // of_keys (n, width): the tokens [first, last) with the rows that they read.
  void of_keys(const AttentionHead& head, Rows rows, std::int64_t first, std::int64_t last,
               float* of_keys) const {
    if (!tables_.queries) return;
    for (std::int64_t j = first; j < last; j += kTokens) {
      const std::int64_t count = std::min(kTokens, last - j);
      numbers(head, tables_.keys_of, tables_.queries, rows, j, count,
              row(-place(head, j + count - 1)), row(place(head, head.n - 1) - place(head, j)),
              of_keys + j * rows.width);
    }
  }

  // bias (last - first, n) of a tile's queries; scratch of tile_size, of which the bias is a part.
  float* bias(const AttentionHead& head, Rows rows, std::int64_t first, std::int64_t last,
              const float* of_keys, float* scratch) const {
    float* of_queries = scratch;
    float* bias = of_queries + kTokens * rows.width + kSpare;
    const std::int64_t count = last - first;
    Disentangled call{};
    call.n_queries = count;
    call.n_keys = head.n;
    call.n_rows = rows.width;
    call.scale = call_.scale;
    auto* places = reinterpret_cast<std::int32_t*>(bias + count * head.n);
    find_rows(head, rows.low, first, count, places, call);
    for (std::int64_t i = 0; i < count; i += kTokens) {
      const std::int64_t few = std::min(kTokens, count - i);
      if (tables_.keys)
        numbers(head, tables_.queries_of, tables_.keys, rows, first + i, few,
                row(place(head, first + i) - place(head, head.n - 1)),
                row(place(head, first + i + few - 1)), of_queries);
      disentangled_kernels().bias(call, i, few, tables_.keys ? of_queries : nullptr,
                                  tables_.queries ? of_keys : nullptr, bias);
    }
    return bias;
  }

 private:
  // Where a token of a head's sequence stands, from its first.
  std::int64_t place(const AttentionHead& head, std::int64_t token) const {
    return call_.contiguous ? token
                            : static_cast<std::int64_t>(call_.positions[head.first + token]);
  }

  std::int32_t row(std::int64_t distance) const {
    return tables_.of_distance[std::clamp(distance, -tables_.reach, tables_.reach)];
  }

  // to (count, width), from the strip of the row `least` on to that of `most`.
  void numbers(const AttentionHead& head, const Rows3& x, const float* tables, Rows rows,
               std::int64_t token, std::int64_t count, std::int64_t least, std::int64_t most,
               float* to) const {
    const std::int64_t from = (least - rows.low) / kStrip * kStrip;
    const std::int64_t depth = call_.head_dim, step = tables_.n_rows;
    disentangled_kernels().numbers(
        static_cast<const float*>(x.at) + (head.first + token) * x.row + head.head * x.head, x.row,
        count, tables + head.head * depth * step + rows.low + from, step, depth,
        strips(most - rows.low + 1) - from, to + from, rows.width);
  }

  // The rows of a tile's pairs, from `low` on. Tokens that stand side by side have a line of them: the next
  // query's begins one place before it.
  void find_rows(const AttentionHead& head, std::int64_t low, std::int64_t first, std::int64_t count,
                 std::int32_t* memory, Disentangled& call) const {
    const std::int64_t n = head.n;
    const auto from = static_cast<std::int32_t>(low);
    const auto of = [&](std::int64_t distance) { return row(distance) - from; };
    if (call_.contiguous) {
      const std::int64_t many = count + n - 1;
      std::int32_t *falling = memory, *rising = memory + count + n;
      for (std::int64_t t = 0; t < many; ++t)
        rising[t] = falling[many - 1 - t] = of(first - (n - 1) + t);
      call.rows = falling + count - 1;
      call.turned = rising + n - 1;
      call.rows_step = call.turned_step = -1;
      return;
    }
    std::int32_t *rows = memory, *turned = memory + count * n;
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t j = 0; j < n; ++j)
        rows[i * n + j] = turned[j * count + i] = of(place(head, first + i) - place(head, j));
    call.rows = rows;
    call.turned = turned;
    call.rows_step = n;
    call.turned_step = count;
  }

  const Attention& call_;
  const PositionTables& tables_;
};

class Forward {
 public:
  Forward(const Attention& call, const PositionTables& tables, const AttentionForward& result)
      : call_(call), result_(result), positions_(call, tables), heads_(heads_of(call)) {
    std::int64_t scratch = 0, n_tiles = 0;
    for (const AttentionHead& head : heads_) {
      rows_.push_back(positions_.rows_of(head));
      std::int64_t floats = whole_lines(positions_.tile_size(head, rows_.back()));
      if (head.n <= kQueryTile) floats += Positions::keys_size(head, rows_.back());
      scratch = std::max(scratch, floats);
      n_tiles += tiles_of(head.n);
    }
    threads_ = threads_for(heads_, n_tiles);
    scratch_ = std::make_unique<ScratchPool>(threads_, scratch);
    tiles_ = std::make_unique<ScratchPool>(threads_, kernels_.scratch(call.head_dim));
  }

  void run() {
    std::size_t first = 0;
    while (first < heads_.size() && heads_[first].n > kQueryTile) first = group(first);
    each(heads_.size() - first, [&](std::size_t i, int thread) {
      const AttentionHead& head = heads_[first + i];
      float* of_keys = scratch_->of(thread) + whole_lines(positions_.tile_size(head, rows_[first + i]));
      positions_.of_keys(head, rows_[first + i], 0, head.n, of_keys);
      tile(head, rows_[first + i], 0, head.n, of_keys, thread);
    });
  }

 private:
  // body(i, thread) for i in [0, count), each thread with what the processor keeps for it.
  template <class Body>
  void each(std::size_t count, const Body& body) const {
    const auto scope = [&] { return ThreadScope(kernels_.thread, call_); };
    parallel_for(static_cast<std::int64_t>(count), threads_, scope, [&](std::int64_t i, int thread) {
      body(static_cast<std::size_t>(i), thread);
    });
  }

  // Heads from `first` on, longer than a tile; returns the first that is left.
  std::size_t group(std::size_t first) {
    struct Tile {
      std::size_t head;
      std::int64_t first, last;
    };
    std::vector<Tile> tiles;
    std::vector<std::int64_t> of_keys;
    std::int64_t floats = 0;
    std::size_t last = first;
    do {
      AttentionHead& head = heads_[last];
      of_keys.push_back(floats);
      floats += whole_lines(Positions::keys_size(head, rows_[last])) +
                whole_lines(kernels_.keys_size(head));
      for (std::int64_t q = 0; q < head.n; q += kQueryTile)
        tiles.push_back({last, q, std::min(q + kQueryTile, head.n)});
      ++last;
    } while (last < heads_.size() && heads_[last].n > kQueryTile &&
             (static_cast<std::int64_t>(tiles.size()) < kTilesPerThread * threads_ ||
              floats < kGroupFloats));
    if (floats > size_) {
      memory_.reset(new float[static_cast<std::size_t>(floats + kLineFloats)]);
      size_ = floats;
    }
    float* start = on_a_line(memory_.get());
    each(tiles.size(), [&](std::size_t i, int) {
      const Tile& here = tiles[i];
      AttentionHead& head = heads_[here.head];
      float* numbers = start + of_keys[here.head - first];
      positions_.of_keys(head, rows_[here.head], here.first, here.last, numbers);
      if (here.first) return;
      head.keys = numbers + whole_lines(Positions::keys_size(head, rows_[here.head]));
      const FlushSubnormals flush;
      kernels_.prepare(head);
    });
    each(tiles.size(), [&](std::size_t i, int thread) {
      const Tile& here = tiles[i];
      tile(heads_[here.head], rows_[here.head], here.first, here.last,
           start + of_keys[here.head - first], thread);
    });
    return last;
  }

  void tile(const AttentionHead& head, Positions::Rows rows, std::int64_t first, std::int64_t last,
            const float* of_keys, int thread) const {
    Attention call = call_;
    call.kind = BiasKind::dense;
    call.bias = positions_.bias(head, rows, first, last, of_keys, scratch_->of(thread));
    call.bias_dtype = Dtype::f32;
    call.reach = head.n;
    call.rows = 0;  // the bias is this head's alone
    AttentionHead mine = head;
    mine.call = &call;
    mine.begin = first;
    mine.end = last;
    PairCount met{0, 0, 0};
    const FlushSubnormals flush;
    kernels_.tile(mine, first, last, result_, tiles_->of(thread), met);
  }

  const Attention& call_;
  const AttentionForward& result_;
  const AttentionForwardKernels& kernels_ = attention_forward_kernels();
  const Positions positions_;
  std::vector<AttentionHead> heads_;
  std::vector<Positions::Rows> rows_;
  int threads_ = 1;
  std::unique_ptr<ScratchPool> scratch_, tiles_;
  std::unique_ptr<float[]> memory_;
  std::int64_t size_ = 0;
};

}  // namespace

void disentangled_forward(const Attention& call, const PositionTables& tables,
                          const AttentionForward& result) {
  Forward(call, tables, result).run();
}

}  // namespace pyenc

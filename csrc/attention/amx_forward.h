// Attention forward on matrix units: TileMath, which AttentionForward takes for bfloat16.
//
// s (keys, queries) = K Q^T and o (D, queries) += V^T p, a strip of 16 queries beside a block of 64
// keys at a time. Products and softmax keep different parts of a core busy, so they run side by side,
// written so in the source: while the weights of one meeting of a strip with a block are made, the
// scores of the next are computed and the values of the one before are added.
//
// A maximum is looked for where a strip meets its first block alone. From then on only the sums of
// weights are watched: where they grow beyond what harms no sum, the meeting's weights are made anew.
// None of it changes a result but the rule's view: when a strip meets two blocks one behind the other,
// the rule does not count the first one's weights yet for the second, and so leaves out no more.
#pragma once

#include "attention/amx_bound.h"
#include "attention/amx_layout.h"
#include "attention/amx_meeting.h"
#include "attention/amx_product.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

class Pipeline;

struct TileMath {
  using Meetings = Pipeline;
  using Scalar = BFloat16;
  static constexpr int kStrip = 1;
  static constexpr std::int64_t kKeys = kTileKeys;
  // Two meetings are under way: scores of both, and the pairs of their weights, which take half.
  static constexpr std::int64_t kScores = 3, kBiases = 2;
  static constexpr bool kCentroids = false;

  static std::int64_t keys_size(std::int64_t count, std::int64_t depth) {
    return row_words(count, depth);
  }
  static std::int64_t values_size(std::int64_t count, std::int64_t depth) {
    return column_words(count, depth);
  }
  static std::int64_t operand_size(std::int64_t queries, std::int64_t depth) {
    return queries * pair_tiles(depth) * kTile;
  }
  static std::int64_t out_depth(std::int64_t depth) { return row_tiles(depth) * kTile; }

  static void read_keys(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                        std::int64_t count, std::int64_t depth, float* to) {
    read_as_rows(x, token, head, count, depth, to);
  }
  static void read_values(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                          std::int64_t count, std::int64_t depth, float* to) {
    read_as_columns(x, token, head, count, depth, to);
  }
  static float score_scale(const Attention& call) { return call.scale * kLog2e; }
  static void make_bounds(const AttentionHead& head) { make_tile_bounds(head, head.keys); }
  static void read_tile(const AttentionHead&, std::int64_t, std::int64_t, float*) {}

  template <int C>
  struct Queries {
    float* operand;  // (pairs of D, 16 queries)
    std::int64_t fetched;  // rows
    bool faint[2];         // whether a block of a side was left out once it was weighed

    void start(const AttentionHead& head, const Strip<C>& strip, const Scratch<TileMath>& scratch,
               std::int64_t done) {
      const std::int64_t depth = head.call->head_dim;
      operand = scratch.operand + operand_size(done, depth);
      read_queries(head.call->q, head.first + strip.first, head.head, strip.count, depth, operand);
      fetched = 0, faint[0] = faint[1] = false;
    }

    void measure(const AttentionHead& head, Floats (&square)[C], Floats (&along)[C]) const {
      const KeyBounds bounds(head);
      Floats squares[2] = {}, alongs[2] = {};
      for (std::int64_t p = 0; p < centre_size(*head.call); p += 2)
        for (int i = 0; i < 2; ++i) {
          const Ints words = load_words(operand + (p + i) * kTile);
          const Ints centre = static_cast<std::int32_t>(word_at(bounds.center + p + i)) - Ints{};
          squares[i] = dot_pairs(squares[i], words, words);
          alongs[i] = dot_pairs(alongs[i], words, centre);
        }
      const float scale = head.call->scale * kLog2e;
      square[0] = (squares[0] + squares[1]) * (scale * scale);
      along[0] = (alongs[0] + alongs[1]) * scale;
    }
  };

  template <int C>
  static void write_out(const AttentionHead& head, const Strip<C>& strip, const Floats (&factor)[C],
                        float* o, float*, void* out) {
    write_queries(head, strip.first, strip.count, o, factor[0], out);
  }
};
static_assert(kLanes == kTile, "a strip of one vector is a tile's columns");

// The meetings of strips with blocks, three at a time.
class Pipeline {
  using Strip16 = Walk<1, TileMath>;

 public:
  explicit Pipeline(const AttentionForward& result) : out_(result.out) {}

  void meet(Strip16& walk, const AttentionHead& head, const Block<TileMath>& block,
            const Scratch<TileMath>& scratch, PairCount& count) {
    Item& next = items_[turn_ % 3];
    if (!walk.admit(head, block, next, count)) return;
    const std::int64_t slot = turn_++ % 2;
    next.start(walk, head, scratch, slot);
    next.p = scratch.s + 2 * Item::kBlock + slot * Item::kBlock / 2;
    next.fetch_some(head, out_);
    advance(head, &next, count);
  }

  void finish(const AttentionHead& head, PairCount& count) {
    while (scored_ || weighed_) advance(head, nullptr, count);
  }

 private:
  struct Item : TileMeeting<TileMath> {
    float* p;  // (pairs of keys, 16 queries), the weights
  };

  const void* out_;
  Item items_[3];
  std::int64_t turn_ = 0;
  Item *scored_ = nullptr, *weighed_ = nullptr;  // their weights, and their values, are to come

  // Adds the values of `weighed_`, weighs `scored_`, scores `next`.
  void advance(const AttentionHead& head, Item* next, PairCount& count) {
    if (scored_ && scored_->is_faint(head)) scored_ = nullptr;
    Floats sum = {};
    if (scored_ && !scored_->place.uniform)
      side_by_side<false>(head, next, sum);
    else
      side_by_side<true>(head, next, sum);
    weighed_ = nullptr;
    if (Item* item = scored_) {
      if (any(sum > kMostSum)) weigh_anew(head, *item, sum);
      if (item->add(head, sum, count)) weighed_ = item;
      scored_ = nullptr;
    }
    if (!next) return;
    if (any(next->walk->m[0] == -kInfinity)) {
      if (weighed_ && weighed_->walk == next->walk) {
        // Its weights go by the maximum of before, and so do the sums they belong to.
        add_values(head, *weighed_, [] {});
        weighed_ = nullptr;
      }
      next->follow(head);
    }
    scored_ = next;
  }

  template <bool Uniform>
  void side_by_side(const AttentionHead& head, Item* next, Floats& sum) {
    const std::int64_t depth = head.call->head_dim, tiles = pair_tiles(depth);
    const std::int64_t eights = scored_ ? 2 * scored_->groups() : 0;
    const std::int64_t pauses = (weighed_ ? row_tiles(depth) : 0) +
                                (next ? score_pauses(tiles, next->groups()) : 0);
    const std::int64_t each = pauses ? (eights + pauses - 1) / pauses : 0;
    const float scale = TileMath::score_scale(*head.call);
    const float *s = nullptr, *bias = nullptr;
    float* p = nullptr;
    Floats shift = {}, sums[2] = {};
    if (scored_) {
      s = scored_->s, p = scored_->p, bias = Uniform ? scored_->column : scored_->bias;
      shift = scored_->shift();
    }
    std::int64_t left = eights;
    // In line, or the sums would go through memory.
    const auto weigh = [&]() __attribute__((always_inline)) {
      weigh_eight<Uniform>(s, bias, scale, shift, p, sums);
      s += 8 * kTile, bias += Uniform ? 8 : 8 * kTile, p += 4 * kTile, --left;
    };
    const auto pause = [&]() __attribute__((always_inline)) {
      for (std::int64_t i = 0; i < each && left > 0; ++i) weigh();
    };
    if (next) {
      score_column<kTile>(next->block.k, next->walk->queries.operand, tiles, next->groups(), next->s, pause);
      forget_tiles();
    }
    if (weighed_) {
      add_values(head, *weighed_, pause);
      forget_tiles();
    }
    while (left > 0) weigh();
    // What pads the last tile of pairs.
    if (scored_ && eights % 4)
      for (int i = 0; i < 8; ++i) store(p + i * kTile, Floats{});
    sum = sums[0] + sums[1];
  }

  // Eight keys' scores become four pairs of weights.
  template <bool Uniform>
  static PYENC_INLINE void weigh_eight(const float* s, const float* bias, float scale, Floats shift,
                                       float* p, Floats (&sums)[2]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto weight = [&](int j) __attribute__((always_inline)) {
        const Floats more = Uniform ? splat(bias[j]) : load(bias + j * kTile);
        return power_of_two(load(s + j * kTile) * scale + more - shift);
      };
      const Floats low = weight(2 * i), high = weight(2 * i + 1);
      sums[0] += low, sums[1] += high;
      *reinterpret_cast<LooseInts*>(p + i * kTile) = pair_of_weights(low, high);
    }
  }

  template <class Pause>
  PYENC_INLINE void add_values(const AttentionHead& head, const Item& item, const Pause& pause) {
    value_column<kTile>(item.block.v, item.p, row_tiles(head.call->head_dim), item.two(),
                        item.walk->o, pause);
  }

  // Its scores have run away from the maximum. All values of before are added.
  void weigh_anew(const AttentionHead& head, Item& item, Floats& sum) {
    item.follow(head);
    Item* const scored = scored_;
    scored_ = &item, weighed_ = nullptr;
    if (item.place.uniform)
      side_by_side<true>(head, nullptr, sum);
    else
      side_by_side<false>(head, nullptr, sum);
    scored_ = scored;
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX

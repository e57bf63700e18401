// Attention forward of one tile of queries, compiled once per instruction set.
//
// Queries stand in the lanes: s (keys, queries) = K Q^T, o (D, queries) += V^T p. So keys and values
// are broadcast, and maxima and sums over keys need nothing across lanes. The softmax is online
// (Milakov & Gimelshein, arXiv 1805.02867): m is the running maximum, l the sum of 2^(s - m). A tile
// begins at its own place in the sequence and walks outward, so that with ALiBi the largest scores
// come first and the rule of attention/bound.h may end a side early.

#include "attention/arguments.h"
#include "attention/bound.h"
#include "attention/pairs.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// m is left where it is until a score passes it by more than this: 2^8 harms no sum.
constexpr float kHeadroom = 8;

// How keys, values, queries and weights are kept, and the two products over them: as floats.
struct FloatMath {
  static std::int64_t key_size(std::int64_t depth) { return depth; }
  static std::int64_t values_size(std::int64_t count, std::int64_t depth) { return count * depth; }
  static constexpr auto read_keys = read_rows;
  static constexpr auto read_values = read_rows;

  // The queries as the product wants them: the scaled ones serve.
  static const float* turn_queries(const float*, std::int64_t, std::int64_t, std::int64_t,
                                   const float* scaled, float*) {
    return scaled;
  }

  template <int C, bool Tile>
  static void scores(const float* k, const float* q, std::int64_t depth, std::int64_t count, float,
                     const float* bias, float* s, Floats (&top)[C]) {
    scores_of<C, Tile>(k, q, depth, count, bias, s, top);
  }

  template <int C>
  static void weigh(const Floats (&shift)[C], std::int64_t count, float* s, Floats (&sum)[C]) {
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c) {
        float* place = s + j * Strip<C>::kWidth + c * kLanes;
        const Floats weight = weight_of(load(place) - shift[c]);
        store(place, weight);
        sum[c] += weight;
      }
  }

  template <int C>
  static void add_values(const float* v, std::int64_t depth, std::int64_t count, const float* s,
                         float* o) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    multiply_add<C>({v, 1, depth}, depth, s, kWidth, count, o, kWidth);
  }
};

struct Scratch {
  float *keys, *rows, *s, *bias, *column, *q, *q_pairs, *o;

  static std::int64_t size(std::int64_t depth) {
    return 5 * kQueryTile * depth + kQueryTile * ((depth + 1) / 2) + 2 * kKeyBlock * kWidest +
           kKeyBlock;
  }

  Scratch(float* at, std::int64_t depth) {
    keys = at;                             // keys and values of a sequence of one tile
    rows = keys + 2 * kQueryTile * depth;  // (kQueryTile, D)
    q = rows + kQueryTile * depth;
    o = q + kQueryTile * depth;
    q_pairs = o + kQueryTile * depth;
    s = q_pairs + kQueryTile * ((depth + 1) / 2);
    bias = s + kKeyBlock * kWidest;
    column = bias + kKeyBlock * kWidest;
  }

  static constexpr std::int64_t kWidest = kColumns * kLanes;
};

// A block of a head's keys and their values, as Math keeps them.
template <class Math>
struct Block {
  std::int64_t index, first, last;
  const float *k, *v;

  Block(const AttentionHead& head, std::int64_t at) {
    const std::int64_t depth = head.call->head_dim;
    index = at, first = at * kKeyBlock;
    last = first + kKeyBlock < head.n ? first + kKeyBlock : head.n;
    k = head.keys + first * Math::key_size(depth);
    v = head.keys + head.n * Math::key_size(depth) + Math::values_size(first, depth);
  }

  std::int64_t count() const { return last - first; }
};

// One strip of queries on its way through the keys.
template <int C, class Math>
struct Walk {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;

  Strip<C> strip;
  float *q, *o;          // (D, strip); q is scaled
  const float* operand;  // the queries as the product wants them
  SkipRule<C> rule;
  Floats m[C], l[C];
  std::int64_t met_first, met_last;
  bool left_open, right_open;

  // rows: (queries of the strip, D).
  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const Scratch& scratch, std::int64_t done) {
    const std::int64_t depth = head.call->head_dim;
    strip.start(head, first_query, last_query);
    q = scratch.q + done * depth, o = scratch.o + done * depth;
    const float* rows = scratch.rows + done * depth;
    turn(rows, strip.count, depth, kWidth, head.call->scale * kLog2e, q);
    operand = Math::turn_queries(rows, strip.count, depth, kWidth, q,
                                 scratch.q_pairs + done * ((depth + 1) / 2));
    rule.start(head, strip, q);
    for (int c = 0; c < C; ++c) m[c] = splat(-kInfinity), l[c] = Floats{};
    for (std::int64_t i = 0; i < depth * kWidth; ++i) o[i] = 0;
    met_first = head.n, met_last = 0;
    left_open = right_open = true;
  }

  // Meets a block, unless it need not. A side's blocks come in the order of their distance.
  void meet(const AttentionHead& head, const Block<Math>& block, const Scratch& scratch,
            PairCount& count) {
    if (block.first >= strip.first + strip.count ? !right_open
        : block.last <= strip.first              ? !left_open
                                                 : false)
      return;
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim;
    const Placement place = placement(head, strip, block.first, block.last);
    if (place.side == Side::none) {
      // Beyond the window on this side, and so is all that follows.
      (block.first > strip.first ? right_open : left_open) = false;
      return;
    }
    const bool may_skip = rule.active && place.side != Side::both;
    Floats floor[C] = {};
    if (may_skip) {
      lse_floor(m, l, floor);
      const bool right = place.side == Side::right;
      const float nearest =
          call.positions[head.first + (right ? block.first : block.last - 1)];
      const KeyBounds bounds(head.bounds, head.n, depth);
      const float reach = right ? bounds.right[block.index] : bounds.left[block.index];
      if (rule.ends(strip, nearest, reach, floor)) {
        (right ? right_open : left_open) = false;
        return;
      }
      if (rule.drops(strip, bounds, block.index, block.count(), depth, q, nearest, floor)) return;
    }
    met_first = block.first < met_first ? block.first : met_first;
    met_last = block.last > met_last ? block.last : met_last;
    count.scored += strip.count * block.count();

    const float scale = call.scale * kLog2e;
    Floats row[C] = {}, top[C];
    if (place.uniform) {
      uniform_bias(head, strip, place.side, block.first, block.last, scratch.column, row);
      Math::template scores<C, false>(block.k, operand, depth, block.count(), scale, scratch.column,
                                      scratch.s, top);
    } else {
      pair_bias(head, strip, block.first, block.last, scratch.bias);
      Math::template scores<C, true>(block.k, operand, depth, block.count(), scale, scratch.bias,
                                     scratch.s, top);
    }
    for (int c = 0; c < C; ++c) top[c] += row[c];
    // Among the largest scores a NaN does not show; keys that are not finite are met.
    const bool may_drop =
        may_skip && KeyBounds(head.bounds, head.n, depth).radius[block.index] < kInfinity;
    if (may_drop && rule.drops(top, block.count(), floor)) return;

    raise(top, depth);
    Floats sum[C] = {};
    weigh(row, block.count(), scratch.s, sum);
    if (may_drop && drops(sum)) return;
    for (int c = 0; c < C; ++c) l[c] += sum[c];
    Math::template add_values<C>(block.v, depth, block.count(), scratch.s, o);
    count.summed += strip.count * block.count();
  }

  // The running maximum follows the scores, where they have run away from it.
  void raise(const Floats (&top)[C], std::int64_t depth) {
    Ints above = {};
    for (int c = 0; c < C; ++c) above |= top[c] > m[c] + kHeadroom;
    if (!any(above)) return;
    Floats shrink[C];
    for (int c = 0; c < C; ++c) {
      const Floats higher = larger(top[c], m[c]);
      shrink[c] = weight_of(m[c] - larger(higher, splat(-3e38f)));
      m[c] = higher;
      l[c] *= shrink[c];
    }
    for (std::int64_t d = 0; d < depth; ++d)
      for (int c = 0; c < C; ++c) {
        float* place = o + d * kWidth + c * kLanes;
        store(place, load(place) * shrink[c]);
      }
  }

  // s becomes 2^(s + row - m), and sum that of each query.
  void weigh(const Floats (&row)[C], std::int64_t count, float* s, Floats (&sum)[C]) {
    Floats shift[C];
    // A row that has met hidden keys alone has no maximum yet.
    for (int c = 0; c < C; ++c) shift[c] = larger(m[c], splat(-3e38f)) - row[c];
    Math::template weigh<C>(shift, count, s, sum);
  }

  // Whether a block can go whose weights add up to `sum`.
  bool drops(const Floats (&sum)[C]) {
    Floats share[C];
    for (int c = 0; c < C; ++c) share[c] = sum[c] / l[c] * 1.00001f;
    return rule.ledger.take(share);
  }

  void finish(const AttentionHead& head, const AttentionForward& result, float* rows) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, heads = call.n_heads;
    Floats inverse[C];
    for (int c = 0; c < C; ++c) inverse[c] = 1.0f / l[c];
    for (std::int64_t d = 0; d < depth; ++d)
      for (int c = 0; c < C; ++c) {
        float* place = o + d * kWidth + c * kLanes;
        store(place, load(place) * inverse[c]);
      }
    const std::int64_t token = head.first + strip.first;
    transpose(o, depth, strip.count, kWidth, rows, depth);
    put_rows(head, strip.first, strip.count, rows, depth, result.out);
    if (result.lse)
      for (std::int64_t i = 0; i < strip.count; ++i) {
        const double top = m[i / kLanes][i % kLanes], sum = l[i / kLanes][i % kLanes];
        result.lse[(token + i) * heads + head.head] =
            static_cast<float>((top + std::log2(sum)) * 0.69314718055994531);
      }
    if (result.ranges)
      for (std::int64_t i = 0; i < strip.count; ++i)
        result.ranges[(token + i) * heads + head.head] = {static_cast<std::int32_t>(met_first),
                                                          static_cast<std::int32_t>(met_last)};
  }
};

// Walk with its second parameter given, for Tile.
template <class Math>
struct WalkOf {
  template <int C>
  using Strip = Walk<C, Math>;
};

template <class Math>
void copy_keys(const AttentionHead& head) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim;
  Math::read_keys(call.k, call.dtype, head.first, head.head, head.n, depth, head.keys);
  Math::read_values(call.v, call.dtype, head.first, head.head, head.n, depth,
                    head.keys + head.n * Math::key_size(depth));
}

template <class Math>
void forward_tile_as(AttentionHead head, std::int64_t first_query, std::int64_t last_query,
                     const AttentionForward& result, float* memory, PairCount& count) {
  const Attention& call = *head.call;
  const std::int64_t depth = call.head_dim, blocks = blocks_of(head.n);
  const Scratch scratch(memory, depth);
  if (!head.keys) {
    head.keys = scratch.keys;
    copy_keys<Math>(head);
  }
  read_rows(call.q, call.dtype, head.first + first_query, head.head, last_query - first_query, depth,
            scratch.rows);
  Tile<WalkOf<Math>::template Strip> tile;
  tile.start(first_query, last_query, [&](auto& walk, std::int64_t at) {
    walk.start(head, at, last_query, scratch, at - first_query);
  });
  const std::int64_t own_first = first_query / kKeyBlock, own_last = (last_query - 1) / kKeyBlock;
  // Each strip begins at its own place; beyond the tile's, they take a block in turns.
  tile.each([&](auto& walk) {
    const auto meet = [&](std::int64_t b) {
      walk.meet(head, Block<Math>(head, b), scratch, count);
    };
    const std::int64_t first = walk.strip.first / kKeyBlock;
    const std::int64_t last = (walk.strip.first + walk.strip.count - 1) / kKeyBlock;
    for (std::int64_t b = first; b <= last; ++b) meet(b);
    for (std::int64_t b = first - 1; b >= own_first; --b) meet(b);
    for (std::int64_t b = last + 1; b <= own_last; ++b) meet(b);
  });
  const auto meet = [&](std::int64_t b) {
    const Block<Math> block(head, b);
    tile.each([&](auto& walk) { walk.meet(head, block, scratch, count); });
  };
  const auto open = [&](bool right) {
    bool found = false;
    tile.each([&](auto& walk) { found |= right ? walk.right_open : walk.left_open; });
    return found;
  };
  std::int64_t left = own_first - 1, right = own_last + 1;
  while (true) {
    const bool go_left = left >= 0 && open(false), go_right = right < blocks && open(true);
    if (go_left) meet(left--);
    if (go_right) meet(right++);
    if (!go_left && !go_right) break;
  }
  tile.each([&](auto& walk) { walk.finish(head, result, scratch.rows); });
}

// Whether a call's operands are kept as pairs.
bool in_pairs(const Attention& call) {
#ifdef PYENC_BF16_DOT
  return call.dtype == Dtype::bf16;
#else
  (void)call;
  return false;
#endif
}

void forward_tile(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
                  const AttentionForward& result, float* memory, PairCount& count) {
#ifdef PYENC_BF16_DOT
  if (in_pairs(*head.call))
    return forward_tile_as<PairMath>(head, first_query, last_query, result, memory, count);
#endif
  forward_tile_as<FloatMath>(head, first_query, last_query, result, memory, count);
}

void prepare(const AttentionHead& head) {
  if (!head.keys) return;
#ifdef PYENC_BF16_DOT
  if (in_pairs(*head.call)) copy_keys<PairMath>(head);
  else
#endif
    copy_keys<FloatMath>(head);
  if (head.bounds) make_key_bounds(head, in_pairs(*head.call) ? nullptr : head.keys);
}

void exp2_all(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = exp2_of(splat(from[i]))[0];
}

std::int64_t scratch_size(std::int64_t head_dim) { return Scratch::size(head_dim); }

std::int64_t bounds_size(std::int64_t n, std::int64_t head_dim) {
  return KeyBounds::size(n, head_dim);
}

}  // namespace

extern const AttentionForwardKernels attention_forward_kernels;
const AttentionForwardKernels attention_forward_kernels{exp2_all, scratch_size, bounds_size, prepare,
                                                        forward_tile};

}  // namespace PYENC_ISA
}  // namespace pyenc

// One strip of queries on its way through the keys, forward: what it carries along, the rule it asks,
// and the online softmax (Milakov & Gimelshein, arXiv 1805.02867): m is the running maximum, l the sum
// of 2^(s - m).
//
// Math (FloatMath, PairMath, TileMath) says how keys, values, queries and weights are kept. A meeting
// with a block has stages: admit() asks whether the block's keys need be met, keep() whether it matters
// now that the scores are there, add() takes the sums of the weights.
#pragma once

#include "attention/bound.h"
#include "attention/dropout.h"
#include "attention/map_walk.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// m is left where it is until a score passes it by more than this: 2^8 harms no sum.
constexpr float kHeadroom = 8;

template <class Math>
struct Scratch {
  float *keys, *rows, *s, *bias, *column, *q, *operand, *o;

  static constexpr std::int64_t kWidest = Math::kStrip * kLanes;
  // Keys and values of a sequence of one tile.
  static std::int64_t keys_size(std::int64_t depth) {
    return Math::keys_size(kQueryTile, depth) + Math::values_size(kQueryTile, depth);
  }

  static std::int64_t size(std::int64_t depth) {
    return keys_size(depth) + Math::operand_size(kQueryTile, depth) +
           kQueryTile * (2 * depth + Math::out_depth(depth)) +
           (Math::kScores + Math::kBiases) * Math::kKeys * kWidest + Math::kBiases * Math::kKeys;
  }

  Scratch(float* at, std::int64_t depth) {
    keys = at;
    rows = keys + keys_size(depth);  // (kQueryTile, D)
    q = rows + kQueryTile * depth;
    o = q + kQueryTile * depth;
    operand = o + kQueryTile * Math::out_depth(depth);
    s = operand + Math::operand_size(kQueryTile, depth);  // kScores of them
    bias = s + Math::kScores * Math::kKeys * kWidest;  // kBiases of them, and of columns
    column = bias + Math::kBiases * Math::kKeys * kWidest;
  }
};

// A block of a head's keys and their values, as Math keeps them.
template <class Math>
struct Block {
  std::int64_t index, first, last;
  const float *k, *v;

  Block() = default;
  Block(const AttentionHead& head, std::int64_t at) {
    const std::int64_t depth = head.call->head_dim;
    index = at, first = at * Math::kKeys;
    last = first + Math::kKeys < head.n ? first + Math::kKeys : head.n;
    k = head.keys + Math::keys_size(first, depth);
    v = head.keys + Math::keys_size(head.n, depth) + Math::values_size(first, depth);
  }

  std::int64_t count() const { return last - first; }
};

template <int C, class Math>
struct Walk {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;

  // What is known of a block once it is admitted.
  struct Meeting {
    Block<Math> block;
    Placement place;
    bool may_skip;
    Floats floor[C];  // a lower bound of the log-sum-exp so far, where it may
    Floats row[C];    // the bias's row, of a uniform one
  };

  Strip<C> strip;
  float* o;  // (D, strip)
  typename Math::template Queries<C> queries;
  SkipRule<C> rule;
  Dropout<C> dropout;  // where there is any
  Floats m[C], l[C];
  std::int64_t met_first, met_last;
  bool left_open, right_open;

  void start(const AttentionHead& head, std::int64_t first_query, std::int64_t last_query,
             const Scratch<Math>& scratch, std::int64_t done) {
    const std::int64_t out_depth = Math::out_depth(head.call->head_dim);
    strip.start(head, first_query, last_query);
    o = scratch.o + done * out_depth;
    queries.start(head, strip, scratch, done);
    if (head.call->drops()) dropout.start(head, strip);
    rule.active = head.skips;
    if (rule.active) {
      Floats square[C], along[C];
      queries.measure(head, square, along);
      rule.start(head, strip, square, along);
    }
    for (int c = 0; c < C; ++c) m[c] = splat(-kInfinity), l[c] = Floats{};
    float* const to = o;  // so that a compiler sees that no store changes it
    for (std::int64_t i = 0; i < out_depth * kWidth; i += kLanes) store(to + i, Floats{});
    met_first = head.n, met_last = 0;
    left_open = right_open = true;
  }

  // Whether a block has to be met. A side's blocks come in the order of their distance.
  bool admit(const AttentionHead& head, const Block<Math>& block, Meeting& meeting,
             PairCount& count) {
    if (block.first >= strip.first + strip.count ? !right_open
        : block.last <= strip.first              ? !left_open
                                                 : false)
      return false;
    const Attention& call = *head.call;
    const Placement place = placement(head, strip, block.first, block.last);
    if (place.side == Side::none) {
      // Beyond the window on this side, and so is all that follows.
      (block.first > strip.first ? right_open : left_open) = false;
      return false;
    }
    const bool may_skip = rule.active && place.side != Side::both;
    Floats(&floor)[C] = meeting.floor;
    for (int c = 0; c < C; ++c) floor[c] = Floats{};
    if (may_skip) {
      lse_floor(m, l, floor);
      const bool right = place.side == Side::right;
      const float nearest =
          call.positions[head.first + (right ? block.first : block.last - 1)];
      const KeyBounds bounds(head);
      const float reach = right ? bounds.right[block.index] : bounds.left[block.index];
      if (rule.ends(head, strip, nearest, reach, floor)) {
        (right ? right_open : left_open) = false;
        return false;
      }
      if constexpr (Math::kCentroids) {
        Floats dot[C];
        queries.along_centroid(head, bounds, block.index, dot);
        if (rule.drops(head, strip, bounds, block.index, block.count(), dot, nearest, floor))
          return false;
      }
    }
    met_first = block.first < met_first ? block.first : met_first;
    met_last = block.last > met_last ? block.last : met_last;
    count.scored += strip.count * block.count();
    meeting.block = block, meeting.place = place, meeting.may_skip = may_skip;
    return true;
  }

  // The bias of a meeting: its column, and row, or all of its pairs.
  void bias(const AttentionHead& head, Meeting& meeting, float* column, float* pairs) {
    const Block<Math>& block = meeting.block;
    for (int c = 0; c < C; ++c) meeting.row[c] = Floats{};
    if (meeting.place.uniform)
      uniform_bias(head, strip, meeting.place.side, block.first, block.last, column, meeting.row);
    else
      pair_bias(head, strip, block.first, block.last, pairs);
  }

  // Among the largest scores a NaN does not show; keys that are not finite are met.
  bool may_drop(const AttentionHead& head, const Meeting& meeting) const {
    return meeting.may_skip && KeyBounds(head).radius[meeting.block.index] < kInfinity;
  }

  // top: the largest scores, without the bias's row, and then with it. Whether they matter.
  bool keep(const Meeting& meeting, bool may_drop, Floats (&top)[C]) {
    for (int c = 0; c < C; ++c) top[c] += meeting.row[c];
    return !(may_drop && rule.drops(top, meeting.block.count(), meeting.floor));
  }

  bool is_above(const Floats (&top)[C]) const {
    Ints above = {};
    for (int c = 0; c < C; ++c) above |= top[c] > m[c] + kHeadroom;
    return any(above);
  }

  // The running maximum follows the scores, where they have run away from it.
  void raise(const Floats (&top)[C], std::int64_t depth) {
    if (!is_above(top)) return;
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

  // The weights of a block are 2^(s - shift).
  void shift_of(const Meeting& meeting, Floats (&shift)[C]) const {
    // A row that has met hidden keys alone has no maximum yet.
    for (int c = 0; c < C; ++c) shift[c] = larger(m[c], splat(-3e38f)) - meeting.row[c];
  }

  // Takes a block whose weights add up to `sum`, unless it may and can go. Whether it has.
  bool add(const Meeting& meeting, bool may_drop, const Floats (&sum)[C], PairCount& count) {
    if (may_drop && drops(sum)) return false;
    for (int c = 0; c < C; ++c) l[c] += sum[c];
    count.summed += strip.count * meeting.block.count();
    return true;
  }

  bool drops(const Floats (&sum)[C]) {
    Floats share[C];
    for (int c = 0; c < C; ++c) share[c] = sum[c] / l[c] * 1.00001f;
    return rule.ledger.take(share);
  }

  void finish(const AttentionHead& head, const AttentionForward& result, float* rows) {
    const std::int64_t token = head.first + strip.first, heads = head.call->n_heads;
    Floats inverse[C];
    for (int c = 0; c < C; ++c) inverse[c] = head.call->kept_scale() / l[c];
    Math::template write_out<C>(head, strip, inverse, o, rows, result.out);
    if (result.lse)
      for (std::int64_t i = 0; i < strip.count; ++i) {
        const double top = m[i / kLanes][i % kLanes], sum = l[i / kLanes][i % kLanes];
        result.lse[(token + i) * heads + head.head] =
            static_cast<float>((top + std::log2(sum)) * 0.69314718055994531);
      }
    if (result.shift)
      for (std::int64_t i = 0; i < strip.count; ++i) {
        result.shift[(token + i) * heads + head.head] = m[i / kLanes][i % kLanes];
        result.total[(token + i) * heads + head.head] = l[i / kLanes][i % kLanes];
      }
    if (result.ranges)
      for (std::int64_t i = 0; i < strip.count; ++i)
        result.ranges[(token + i) * heads + head.head] = {static_cast<std::int32_t>(met_first),
                                                          static_cast<std::int32_t>(met_last)};
  }
};

// A meeting from its beginning to its end, for FloatMath and PairMath.
template <class Math>
struct AtOnce {
  explicit AtOnce(const AttentionForward&) {}

  template <int C>
  void meet(Walk<C, Math>& walk, const AttentionHead& head, const Block<Math>& block,
            const Scratch<Math>& scratch, PairCount& count) {
    typename Walk<C, Math>::Meeting meeting;
    if (!walk.admit(head, block, meeting, count)) return;
    const std::int64_t depth = head.call->head_dim;
    const float scale = head.call->scale * kLog2e;
    Floats top[C], shift[C], sum[C] = {};
    walk.bias(head, meeting, scratch.column, scratch.bias);
    if (head.call->map) {
      // What a window hides is hidden from the new scores.
      for (std::int64_t j = 0; j < block.count(); ++j) scratch.column[j] = 0;
      Math::template scores<C, false>(block.k, walk.queries.operand, depth, block.count(), scale,
                                      scratch.column, scratch.s, top);
      map_scores(head, walk.strip, block.first, block.count(),
                 meeting.place.uniform ? nullptr : scratch.bias, scratch.s, scratch.s, top);
    } else if (meeting.place.uniform)
      Math::template scores<C, false>(block.k, walk.queries.operand, depth, block.count(), scale,
                                      scratch.column, scratch.s, top);
    else
      Math::template scores<C, true>(block.k, walk.queries.operand, depth, block.count(), scale,
                                     scratch.bias, scratch.s, top);
    const bool may_drop = walk.may_drop(head, meeting);
    if (!walk.keep(meeting, may_drop, top)) return;
    walk.raise(top, depth);
    walk.shift_of(meeting, shift);
    Math::template weigh<C>(shift, block.count(), scratch.s, sum);
    if (!walk.add(meeting, may_drop, sum, count)) return;
    if (head.call->drops())
      Math::template drop<C>(head, walk.dropout, block.first, block.count(), scratch.s);
    Math::template add_values<C>(block.v, depth, block.count(), scratch.s, walk.o);
  }

  void finish(const AttentionHead&, PairCount&) {}
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

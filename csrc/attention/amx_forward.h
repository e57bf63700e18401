// Attention forward on matrix units: TileMath, which AttentionForward takes for bfloat16.
//
// s (keys, queries) = K Q^T and o (D, queries) += V^T p, 16 queries at a time. Products and softmax
// keep different parts of a core busy, so they run side by side, written so in the source: while the
// weights of one meeting of a strip with a block are made, the scores of the next are computed and the
// values of the one before are added. Few tile registers are alive at a time: more cost time.
// None of it changes a result but the rule's view: when a strip meets two blocks one behind the other,
// the rule does not count the first one's weights yet for the second, and so leaves out no more.
#pragma once

#include "attention/amx_layout.h"
#include "attention/amx_product.h"
#include "attention/forward_walk.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

struct TileMeetings;

struct TileMath {
  using Meetings = TileMeetings;
  static constexpr std::int64_t kKeys = kTileKeys;
  // Two of the wide strips, and what two of the narrow ones need.
  static constexpr std::int64_t kScores = 3;
  static constexpr bool kScaledQueries = false;

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
  static const float* turn_queries(const float* rows, std::int64_t count, std::int64_t depth,
                                   std::int64_t lanes, const float*, float* to) {
    turn_to_pairs(rows, count, depth, lanes, to);
    return to;
  }
};

// The meetings of strips of one width, three at a time.
template <int C>
class Pipeline {
 public:
  static constexpr int kWidth = C * kLanes;
  static constexpr std::int64_t kSize = 2 * kTileKeys * kWidth;  // of its scores

  // scores: kSize floats.
  void meet(Walk<C, TileMath>& walk, const AttentionHead& head, const Block<TileMath>& block,
            const Scratch<TileMath>& scratch, float* scores, PairCount& count) {
    Item& next = *free_item();
    if (!walk.admit(head, block, next, count)) return;
    next.walk = &walk;
    // The other one holds the weights of the meeting before, until their values are added.
    next.s = scored_ && scored_->s == scores ? scores + kSize / 2 : scores;
    walk.bias(head, next, scratch);
    advance(head, &next, &scratch, count);
  }

  void finish(const AttentionHead& head, PairCount& count) {
    while (scored_ || weighed_) advance(head, nullptr, nullptr, count);
  }

 private:
  struct Item : Walk<C, TileMath>::Meeting {
    Walk<C, TileMath>* walk;
    float* s;  // scores, then the pairs of the weights in its first half
    bool may_drop;
    Floats top[C], shift[C], sum[C];

    std::int64_t groups() const { return (this->block.count() + kTile - 1) / kTile; }
    // Whether there are more than 32 keys.
    bool two() const { return this->block.count() > kTilePairs; }
  };

  Item items_[3];
  Item *scored_ = nullptr, *weighed_ = nullptr;  // their weights, and their values, are to come

  Item* free_item() {
    Item* item = items_;
    while (item == scored_ || item == weighed_) ++item;
    return item;
  }

  // Adds the values of `weighed_`, weighs `scored_`, scores `next`.
  void advance(const AttentionHead& head, Item* next, const Scratch<TileMath>* scratch,
               PairCount& count) {
    const std::int64_t depth = head.call->head_dim, tiles = pair_tiles(depth);
    const std::int64_t pairs = scored_ ? (scored_->two() ? 2 * kTile : kTile) : 0;
    const std::int64_t pauses = (weighed_ ? row_tiles(depth) : 0) +
                                (next ? score_pauses(tiles, next->groups()) : 0);
    const std::int64_t each = pauses ? (pairs + pauses - 1) / pauses : 0;
    for (int c = 0; c < C; ++c) {
      float* s = scored_ ? scored_->s + c * kLanes : nullptr;
      const Floats shift = scored_ ? scored_->shift[c] : Floats{};
      Floats sum = {};
      std::int64_t done = 0;
      // In line, or the sum would go through memory.
      const auto weigh_until = [&](std::int64_t end) __attribute__((always_inline)) {
        for (end = end < pairs ? end : pairs; done < end; ++done) weigh_pair(s, done, shift, sum);
      };
      const auto pause = [&]() __attribute__((always_inline)) { weigh_until(done + each); };
      if (weighed_) {
        add_column(head, *weighed_, c, pause);
        forget_tiles();
      }
      if (next) {
        score_column<kWidth>(next->block.k, next->walk->operand + c * kLanes, tiles,
                             next->groups(), next->s + c * kLanes, pause);
        forget_tiles();
        const bool uniform = next->place.uniform;
        next->top[c] = collect_column<kWidth>(
            next->s + c * kLanes, next->block.count(), head.call->scale * kLog2e, uniform,
            uniform ? scratch->column : scratch->bias + c * kLanes);
      }
      weigh_until(pairs);
      if (scored_) scored_->sum[c] = sum;
    }
    Item* weighed = scored_;
    if (weighed && !weighed->walk->add(*weighed, weighed->may_drop, weighed->sum, count))
      weighed = nullptr;
    weighed_ = weighed, scored_ = nullptr;
    if (next) judge(head, *next);
  }

  template <class Pause>
  PYENC_INLINE void add_column(const AttentionHead& head, const Item& item, int c, const Pause& pause) {
    value_column<kWidth>(item.block.v, item.s + c * kLanes, row_tiles(head.call->head_dim),
                         item.two(), item.walk->o + c * kLanes, pause);
  }

  // Two keys' scores become a pair of weights; s is a register's column.
  static PYENC_INLINE void weigh_pair(float* s, std::int64_t pair, Floats shift, Floats& sum) {
    const float* at = s + 2 * pair * kWidth;
    const Floats low = brief_weight_of(load(at) - shift);
    const Floats high = brief_weight_of(load(at + kWidth) - shift);
    sum += low + high;
    *reinterpret_cast<LooseInts*>(s + pair * kWidth) = pair_of(low, high);
  }

  // Whether the scores matter, and whether the maximum has to follow them.
  void judge(const AttentionHead& head, Item& item) {
    Walk<C, TileMath>& walk = *item.walk;
    item.may_drop = walk.may_drop(head, item);
    if (!walk.keep(item, item.may_drop, item.top)) return;
    if (weighed_ && weighed_->walk == &walk && walk.is_above(item.top)) {
      // Its weights go by the maximum of before, and so do the sums they belong to.
      for (int c = 0; c < C; ++c) add_column(head, *weighed_, c, [] {});
      forget_tiles();
      weighed_ = nullptr;
    }
    walk.raise(item.top, head.call->head_dim);
    walk.shift_of(item, item.shift);
    scored_ = &item;
  }
};

struct TileMeetings {
  Pipeline<kColumns> wide;
  Pipeline<1> narrow;

  void meet(Walk<kColumns, TileMath>& walk, const AttentionHead& head,
            const Block<TileMath>& block, const Scratch<TileMath>& scratch, PairCount& count) {
    wide.meet(walk, head, block, scratch, scratch.s, count);
  }

  void meet(Walk<1, TileMath>& walk, const AttentionHead& head, const Block<TileMath>& block,
            const Scratch<TileMath>& scratch, PairCount& count) {
    narrow.meet(walk, head, block, scratch, scratch.s + Pipeline<kColumns>::kSize, count);
  }

  void finish(const AttentionHead& head, PairCount& count) {
    wide.finish(head, count);
    narrow.finish(head, count);
  }
};

static_assert(Pipeline<kColumns>::kSize + Pipeline<1>::kSize <=
                  TileMath::kScores * kTileKeys * kColumns * kLanes,
              "the scratch has room for both");

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX

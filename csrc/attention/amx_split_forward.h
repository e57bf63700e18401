// Attention forward of float32 on matrix units: SplitMath, six products of bfloat16 for one of floats
// (attention/amx_split.h), and the order in which a tile's strips meet a block.
//
// The parts of a block's keys and values together are larger than the first level of memory, so all
// strips of a tile meet the keys one after the other, and then the values. A strip's weights are made
// while the next one's scores are computed. As in attention/amx_forward.h a maximum is looked for in a
// strip's first block alone.
#pragma once

#include "attention/amx_meeting.h"
#include "attention/amx_split.h"
#include "attention/forward_math.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

class SplitMeetings;

struct SplitMath : RowMath<SplitMath> {
  using Meetings = SplitMeetings;
  using Scalar = float;
  static constexpr int kStrip = 1;
  static constexpr std::int64_t kKeys = kTileKeys;
  // A tile's strips, of whose weights there are three parts, each half as large as scores.
  static constexpr std::int64_t kStrips = kQueryTile / kTile;
  // Scores of two meetings, a product with the values, and the weights of a tile.
  static constexpr std::int64_t kScores = 3 + (kStrips * kParts + 1) / 2, kBiases = 2;
  static constexpr bool kCentroids = false;
  static constexpr bool kScaledQueries = true;

  static std::int64_t keys_size(std::int64_t count, std::int64_t depth) {
    return kParts * row_words(count, depth);
  }
  static std::int64_t values_size(std::int64_t count, std::int64_t depth) {
    return kParts * column_words(count, depth);
  }
  static std::int64_t operand_size(std::int64_t queries, std::int64_t depth) {
    return kParts * queries * pair_tiles(depth) * kTile;
  }
  static std::int64_t out_depth(std::int64_t depth) { return row_tiles(depth) * kTile; }
  static float score_scale(const Attention&) { return 1.0f; }

  static void read_keys(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                        std::int64_t count, std::int64_t depth, float* to) {
    split_as_rows(x, token, head, count, depth, to);
  }
  static void read_values(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                          std::int64_t count, std::int64_t depth, float* to) {
    split_as_columns(x, token, head, count, depth, to);
  }
  // The parts are no rows of floats: the keys themselves are read.
  static void make_bounds(const AttentionHead& head) { make_key_bounds(head, nullptr); }

  static const float* turn_queries(const float*, std::int64_t, std::int64_t depth, std::int64_t,
                                   const float* scaled, float* to) {
    split_queries(scaled, depth, to);
    return to;
  }

  template <int C>
  struct Queries : RowMath<SplitMath>::Queries<C> {
    std::int64_t fetched;  // rows
    bool faint[2];         // whether a block of a side was left out once it was weighed

    void start(const AttentionHead& head, const Strip<C>& strip, const Scratch<SplitMath>& scratch,
               std::int64_t done) {
      RowMath<SplitMath>::Queries<C>::start(head, strip, scratch, done);
      fetched = 0, faint[0] = faint[1] = false;
    }
  };
};

// Shorter sequences are computed in vector registers: there it was not seen that parts are faster
// (bench/NOTES.md, "float32 on matrix units").
constexpr std::int64_t kShortestSplit = 96;

// Whether the call and the sequence's length are what SplitMath is for. The backward makes its scores in
// vector registers: beside a log-sum-exp of others, weights would be off by what both round.
inline bool may_split(const AttentionHead& head) {
  const Attention& call = *head.call;
  return call.dtype == Dtype::f32 && !call.with_backward && !call.drops() &&
         head.n >= kShortestSplit;
}

// Keys so large that queries beside them may have parts that are subnormal. Weights have none.
constexpr float kLargestKey = 0x1p60f, kLargestValue = 0x1.fffffep127f;

inline bool is_split(const AttentionHead& head) {
  const Attention& call = *head.call;
  return may_split(head) &&
         parts_serve(call.k, head.first, head.head, head.n, call.head_dim, kLargestKey) &&
         parts_serve(call.v, head.first, head.head, head.n, call.head_dim, kLargestValue);
}

// weight_of in attention/tile.h, but for weights that were far too large: those are at least 2^127.
PYENC_INLINE Floats split_weight_of(Floats x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(PYENC_EMULATE_BF16_DOT)
  const Floats f = _mm512_reduce_ps(x, 8);
  const __mmask16 seen = _mm512_cmp_ps_mask(x, splat(kFaintest + 0.5f), _CMP_NLT_UQ);  // and NaN
  return _mm512_maskz_scalef_ps(seen, exp2_fraction<5>(f, 1.0f), x - f);
#else
  return weight_of(x > 127.0f ? splat(127.0f) : x);
#endif
}

class SplitMeetings {
  using Item = TileMeeting<SplitMath>;

 public:
  explicit SplitMeetings(const AttentionForward& result) : out_(result.out) {}

  void meet(Walk<1, SplitMath>& walk, const AttentionHead& head, const Block<SplitMath>& block,
            const Scratch<SplitMath>& scratch, PairCount& count) {
    const std::int64_t slot = turn_ % 2;
    Item& next = items_[slot];
    if (!walk.admit(head, block, next, count)) return;
    ++turn_;
    next.start(walk, head, scratch, slot);
    next.fetch_some(head, out_);
    product_ = scratch.s + 2 * Item::kBlock;
    advance(head, &next, count);
  }

  void finish(const AttentionHead& head, PairCount& count) {
    if (scored_) advance(head, nullptr, count);
    add_values(head);
  }

 private:
  static constexpr std::int64_t kWeights = kPairTiles * kPartsWords;  // words of a meeting's

  struct Due {  // a meeting whose values are to come
    Walk<1, SplitMath>* walk;
    const float* v;
    std::int64_t steps;  // tiles of pairs of keys
  };

  const void* out_;
  Item items_[2];
  Due due_[SplitMath::kStrips];  // of one block
  std::int64_t turn_ = 0, dues_ = 0, due_block_ = 0;
  Item* scored_ = nullptr;  // its weights are to come
  float* product_ = nullptr;

  float* weights(std::int64_t due) const { return product_ + Item::kBlock + due * kWeights; }

  // Weighs `scored_`, scores `next`, and adds the values of the block before.
  void advance(const AttentionHead& head, Item* next, PairCount& count) {
    if (scored_ && scored_->is_faint(head)) scored_ = nullptr;
    Floats sum = {};
    weigh_beside(head, next, sum);
    if (Item* item = scored_) {
      if (any(sum > kMostSum)) {
        // Its scores have run away from the maximum. None of its strip's values is due.
        item->follow(head);
        weigh_beside(head, nullptr, sum);
      }
      if (item->add(head, sum, count)) {
        due_block_ = item->block.index;
        due_[dues_++] = {item->walk, item->block.v, item->two() ? 2 : 1};
      }
      scored_ = nullptr;
    }
    if (!next) return;
    if (head.call->map) {
      // Keys beyond the last are hidden by the bias, which is added to what they have.
      Floats top[1];
      map_scores(head, next->walk->strip, next->block.first, next->block.count(), nullptr, next->s,
                 next->s, top);
    }
    if (next->block.index != due_block_) add_values(head);
    if (any(next->walk->m[0] == -kInfinity)) next->follow(head);
    scored_ = next;
  }

  void weigh_beside(const AttentionHead& head, Item* next, Floats& sum) {
    if (scored_ && !scored_->place.uniform)
      side_by_side<false>(head, next, sum);
    else
      side_by_side<true>(head, next, sum);
  }

  template <bool Uniform>
  void side_by_side(const AttentionHead& head, Item* next, Floats& sum) {
    const std::int64_t tiles = pair_tiles(head.call->head_dim);
    const std::int64_t eights = scored_ ? 2 * scored_->groups() : 0;
    const std::int64_t pauses = next ? split_pauses(next->groups(), tiles) : 0;
    const float *s = nullptr, *bias = nullptr;
    float* p = nullptr;
    Floats shift = {}, sums[2] = {};
    if (scored_) {
      s = scored_->s, bias = Uniform ? scored_->column : scored_->bias;
      p = weights(dues_);
      shift = scored_->shift();
    }
    std::int64_t done = 0, paused = 0;
    // In line, or the sums would go through memory.
    const auto weigh = [&]() __attribute__((always_inline)) {
      weigh_eight<Uniform>(s, bias, shift, p, sums);
      s += 8 * kTile, bias += Uniform ? 8 : 8 * kTile, p += 4 * kTile, ++done;
      if (done == 4) p += kPartsWords - kTileWords;
    };
    const auto pause = [&]() __attribute__((always_inline)) {
      paused += eights;
      if (paused >= pauses && done < eights) paused -= pauses, weigh();
    };
    if (next)
      split_product(next->block.k, tiles * kPartsWords, next->groups(), tiles,
                    next->walk->queries.operand, next->s, pause);
    while (done < eights) weigh();
    // What pads the last tile of pairs.
    if (eights % 4)
      for (int i = 0; i < 8; ++i)
        for (int part = 0; part < kParts; ++part)
          store(p + part * kTileWords + i * kTile, Floats{});
    sum = sums[0] + sums[1];
  }

  // Eight keys' scores become four pairs of weights.
  template <bool Uniform>
  static PYENC_INLINE void weigh_eight(const float* s, const float* bias, Floats shift, float* p,
                                       Floats (&sums)[2]) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const auto weight = [&](int j) __attribute__((always_inline)) {
        const Floats more = Uniform ? splat(bias[j]) : load(bias + j * kTile);
        return split_weight_of(load(s + j * kTile) + more - shift);
      };
      const Floats low = weight(2 * i), high = weight(2 * i + 1);
      sums[0] += low, sums[1] += high;
      Ints parts[kParts];
      split_pair(low, high, parts);
      for (int part = 0; part < kParts; ++part)
        put_words(parts[part], p + part * kTileWords + i * kTile);
    }
  }

  void add_values(const AttentionHead& head) {
    const std::int64_t tiles = row_tiles(head.call->head_dim), step = kPairTiles * kPartsWords;
    for (std::int64_t i = 0; i < dues_; ++i)
      for (std::int64_t t = 0; t < tiles; t += 4) {
        const std::int64_t count = tiles - t < 4 ? tiles - t : 4;
        split_product(due_[i].v + t * step, step, count, due_[i].steps, weights(i), product_, [] {});
        // Summed apart and then added: a running sum of the whole sequence would round at its size.
        float* const o = due_[i].walk->o + t * kTileWords;
        for (std::int64_t w = 0; w < count * kTileWords; w += kLanes)
          store(o + w, load(o + w) + load(product_ + w));
      }
    dues_ = 0;
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX

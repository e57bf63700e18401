// The forward's operands and products in vector registers: as floats, and as pairs of bfloat16.
#pragma once

#include "attention/forward_walk.h"
#include "attention/pairs.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

// What FloatMath and PairMath share: queries are read as rows of floats first, and also kept as
// floats where the rule asks for them; results leave as rows.
template <class Math>
struct RowMath {
  static constexpr bool kCentroids = true;  // whether blocks have centres of their own

  static void read_tile(const AttentionHead& head, std::int64_t first, std::int64_t count,
                        float* rows) {
    const Attention& call = *head.call;
    read_rows(call.q, call.dtype, head.first + first, head.head, count, call.head_dim, rows);
  }

  template <int C>
  struct Queries {
    float* q;              // (D, strip), scaled
    const float* operand;  // as the product wants them

    void start(const AttentionHead& head, const Strip<C>& strip, const Scratch<Math>& scratch,
               std::int64_t done) {
      constexpr std::int64_t kWidth = Strip<C>::kWidth;
      const std::int64_t depth = head.call->head_dim;
      const float* rows = scratch.rows + done * depth;
      q = scratch.q + done * depth;
      if (Math::kScaledQueries || head.skips)
        turn(rows, strip.count, depth, kWidth, query_factor(*head.call), q);
      operand = Math::turn_queries(rows, strip.count, depth, kWidth, q,
                                   scratch.operand + Math::operand_size(done, depth));
    }

    void measure(const AttentionHead& head, Floats (&square)[C], Floats (&along)[C]) const {
      measure_queries<C>(head, q, square, along);
    }

    void along_centroid(const AttentionHead& head, const KeyBounds& bounds, std::int64_t index,
                        Floats (&dot)[C]) const {
      const std::int64_t depth = head.call->head_dim;
      Floats sum[1][C] = {};
      multiply<1, C>({bounds.centroid + index * depth, depth, 1}, q, Strip<C>::kWidth, depth, sum);
      for (int c = 0; c < C; ++c) dot[c] = sum[0][c];
    }
  };

  template <int C>
  static void write_out(const AttentionHead& head, const Strip<C>& strip, const Floats (&factor)[C],
                        float* o, float* rows, void* out) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    const std::int64_t depth = head.call->head_dim;
    for (std::int64_t d = 0; d < depth; ++d)
      for (int c = 0; c < C; ++c) {
        float* place = o + d * kWidth + c * kLanes;
        store(place, load(place) * factor[c]);
      }
    transpose(o, depth, strip.count, kWidth, rows, depth);
    put_rows(head, strip.first, strip.count, rows, depth, out);
  }
};

// How keys, values, queries and weights are kept, and the two products over them: as floats.
struct FloatMath : RowMath<FloatMath> {
  using Meetings = AtOnce<FloatMath>;
  static constexpr int kStrip = kColumns;           // vectors of a strip
  static constexpr std::int64_t kKeys = kKeyBlock;  // of a block
  static constexpr std::int64_t kScores = 1;        // blocks of scores that are kept
  static constexpr std::int64_t kBiases = 1;        // and of their bias
  static constexpr bool kScaledQueries = true;      // whether the product wants Walk::q
  static std::int64_t keys_size(std::int64_t count, std::int64_t depth) { return count * depth; }
  static std::int64_t values_size(std::int64_t count, std::int64_t depth) { return count * depth; }
  static std::int64_t operand_size(std::int64_t, std::int64_t) { return 0; }
  static std::int64_t out_depth(std::int64_t depth) { return depth; }
  static void make_bounds(const AttentionHead& head) { make_key_bounds(head, head.keys); }
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

  // s: as weigh() leaves it; zero where a weight is dropped.
  template <int C>
  static void drop(const AttentionHead& head, const Dropout<C>& dropout, std::int64_t first,
                   std::int64_t count, float* s) {
    for (std::int64_t j = 0; j < count; ++j) {
      const std::uint32_t key = dropout.code(head, first + j);
      for (int c = 0; c < C; ++c) {
        float* place = s + j * Strip<C>::kWidth + c * kLanes;
        put_words(load_words(place) & dropout.kept(key, c), place);
      }
    }
  }

  template <int C>
  static void add_values(const float* v, std::int64_t depth, std::int64_t count, const float* s,
                         float* o) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    multiply_add<C>({v, 1, depth}, depth, s, kWidth, count, o, kWidth);
  }
};

#ifdef PYENC_BF16_DOT

// acc += a b, as multiply() in shared/product.h; k counts pairs, and so do a's strides.
template <int R, int C>
PYENC_INLINE void multiply_pairs(Matrix a, const float* b, std::int64_t ldb, std::int64_t depth,
                                 Floats (&acc)[R][C]) {
  for (std::int64_t k = 0; k < depth; ++k) {
    Ints column[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) column[c] = load_words(b + c * kLanes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const Ints row = static_cast<std::int32_t>(word_at(a.at + r * a.row)) - Ints{};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = dot_pairs(acc[r][c], row, column[c]);
    }
    a.at += a.k;
    b += ldb;
  }
}

inline std::int64_t pairs_of(std::int64_t n) { return (n + 1) / 2; }

// The same as pairs of bfloat16 (attention/pairs.h).
struct PairMath : RowMath<PairMath> {
  using Meetings = AtOnce<PairMath>;
  static constexpr int kStrip = kColumns;
  static constexpr std::int64_t kKeys = kKeyBlock;
  static constexpr std::int64_t kScores = 1;
  static constexpr std::int64_t kBiases = 1;
  static constexpr bool kScaledQueries = false;
  static std::int64_t keys_size(std::int64_t count, std::int64_t depth) {
    return count * pairs_of(depth);
  }
  static std::int64_t operand_size(std::int64_t queries, std::int64_t depth) {
    return queries * pairs_of(depth);
  }
  static std::int64_t out_depth(std::int64_t depth) { return depth; }
  static std::int64_t values_size(std::int64_t count, std::int64_t depth) {
    return pairs_of(count) * depth;
  }
  // The copy is no rows of floats: the keys themselves are read.
  static void make_bounds(const AttentionHead& head) { make_key_bounds(head, nullptr); }

  static void read_keys(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                        std::int64_t count, std::int64_t depth, float* to) {
    for (std::int64_t r = 0; r < count; ++r) {
      const BFloat16* row = row_of<BFloat16>(x, token + r, head);
      for (std::int64_t d = 0; d < depth; d += 2)
        put_word(to++, row[d].bits, d + 1 < depth ? row[d + 1].bits : 0);
    }
  }

  static void read_values(const Rows3& x, Dtype, std::int64_t token, std::int64_t head,
                          std::int64_t count, std::int64_t depth, float* to) {
    for (std::int64_t r = 0; r < count; r += 2) {
      const BFloat16* row = row_of<BFloat16>(x, token + r, head);
      const BFloat16* next = r + 1 < count ? row_of<BFloat16>(x, token + r + 1, head) : nullptr;
      for (std::int64_t d = 0; d < depth; ++d) put_word(to++, row[d].bits, next ? next[d].bits : 0);
    }
  }

  // to (pairs of D, strip) = the queries, from rows of floats that are bfloat16 numbers.
  static const float* turn_queries(const float* rows, std::int64_t count, std::int64_t depth,
                                   std::int64_t lanes, const float*, float* to) {
    const float* start = to;
    const auto upper = [](float x) { return bits_of(x) >> 16; };
    for (std::int64_t d = 0; d < depth; d += 2)
      for (std::int64_t i = 0; i < lanes; ++i) {
        const float* row = rows + i * depth + d;
        const bool live = i < count, both = live && d + 1 < depth;
        put_word(to++, live ? upper(row[0]) : 0, both ? upper(row[1]) : 0);
      }
    return start;
  }

  // As scores_of in attention/tile.h; the queries are not scaled, so the scores are.
  template <int C, bool Tile>
  static void scores(const float* k, const float* q, std::int64_t depth, std::int64_t count,
                     float scale, const float* bias, float* s, Floats (&top)[C]) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    const std::int64_t pairs = pairs_of(depth);
    for (int c = 0; c < C; ++c) top[c] = splat(-kInfinity);
    for_rows(count, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_pairs<R, C>({k + row * pairs, pairs, 1}, q, kWidth, pairs, acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const std::int64_t at = (row + r) * kWidth + c * kLanes;
          const Floats score = acc[r][c] * scale + (Tile ? load(bias + at) : splat(bias[row + r]));
          store(s + at, score);
          top[c] = larger(score, top[c]);
        }
    });
  }

  // s becomes the pairs of its weights, in its first half; returns their sums, before rounding.
  template <int C>
  static void weigh(const Floats (&shift)[C], std::int64_t count, float* s, Floats (&sum)[C]) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    for (std::int64_t j = 0; j < count; j += 2)
      for (int c = 0; c < C; ++c) {
        const float* at = s + j * kWidth + c * kLanes;
        const Floats low = weight_of(load(at) - shift[c]);
        const Floats high = j + 1 < count ? weight_of(load(at + kWidth) - shift[c]) : Floats{};
        sum[c] += low + high;
        *reinterpret_cast<LooseInts*>(s + j / 2 * kWidth + c * kLanes) = pair_of(low, high);
      }
  }

  template <int C>
  static void drop(const AttentionHead& head, const Dropout<C>& dropout, std::int64_t first,
                   std::int64_t count, float* s) {
    const Ints upper = Ints{} - 65536;
    for (std::int64_t j = 0; j < count; j += 2) {
      const std::uint32_t low = dropout.code(head, first + j), high = dropout.code(head, first + j + 1);
      for (int c = 0; c < C; ++c) {
        float* place = s + j / 2 * Strip<C>::kWidth + c * kLanes;
        const Ints kept = (dropout.kept(low, c) & ~upper) | (dropout.kept(high, c) & upper);
        put_words(load_words(place) & kept, place);
      }
    }
  }

  template <int C>
  static void add_values(const float* v, std::int64_t depth, std::int64_t count, const float* s,
                         float* o) {
    constexpr std::int64_t kWidth = Strip<C>::kWidth;
    for_rows(depth, [&](std::int64_t row, auto n) {
      constexpr int R = decltype(n)::count;
      Floats acc[R][C] = {};
      multiply_pairs<R, C>({v + row, 1, depth}, s, kWidth, pairs_of(count), acc);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          float* place = o + (row + r) * kWidth + c * kLanes;
          store(place, load(place) + acc[r][c]);
        }
    });
  }
};

#endif  // PYENC_BF16_DOT

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

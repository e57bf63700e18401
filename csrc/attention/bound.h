// Which keys ALiBi has made too faint to matter, with a bound on what leaving them out changes.
//
// In base 2 the score of key j is s_j = a q.k_j - mu |i - j|, and lse(so far) is at most the row's
// final log-sum-exp. For every vector c, a q.k_j <= a q.c + a |q| |k_j - c|, so that the keys from
// distance d outward carry at most 2^(a q.c + a |q| max|k_j - c| - mu d) / (1 - 2^-mu). A side of a
// row ends where that is below 2^lse(so far) eps / 4. A block of keys may also be left out by itself,
// by its own centre and radius, by its largest scores, or by its weights once they are known, as
// long as all such blocks together carry at most eps / 2. In all at most eps of a row's mass is left
// out, and so
//   |out - out'| <= 2 eps max|v|,  |lse - lse'| <= -ln(1 - eps).
// The backward goes by the final log-sum-exp over the range of blocks that the forward met, with an
// account of its own: of a row's mass the sides' eps / 2, what of the forward's other blocks lies
// outside that range, and eps / 2 again are missing, at most 1.5 eps.
// A bias that is a line of numbers by distance brings, for each distance, the sum of 2^bias over all
// from there outward, which stands where ALiBi's geometric series does.
// Comparisons are written so that a NaN means: compute.
#pragma once

#include <cmath>

#include "attention/amx_layout.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

inline std::int64_t blocks_of(const AttentionHead& head) {
  const std::int64_t block = key_block(*head.call);
  return (head.n + block - 1) / block;
}

// Floats that a centre of keys takes; on matrix units it is pairs (attention/amx_bound.h).
#ifdef PYENC_AMX
inline std::int64_t centre_size(const Attention& call) {
  return call.dtype == Dtype::bf16 ? pair_tiles(call.head_dim) * kTile : call.head_dim;
}
#else
inline std::int64_t centre_size(const Attention& call) { return call.head_dim; }
#endif

// The bounds of a head's keys, one array of floats.
struct KeyBounds {
  float* center;        // (D,) the mean key
  float* left;          // (blocks,) max |k - center| over this block and those before it
  float* right;         // (blocks,) the same over this block and those after it
  float* radius;        // (blocks,) max |k - centroid| of the block
  float* length;        // (blocks,) |centroid|
  float* centroid;      // (blocks, D)
  float center_length;

  // Enough for blocks and centres of any size.
  static std::int64_t size(std::int64_t n, std::int64_t depth) {
    const std::int64_t blocks = (n + kKeyBlock - 1) / kKeyBlock;
    return 1 + 4 * blocks + blocks * depth + (depth + 31) / 32 * 32;
  }

  explicit KeyBounds(const AttentionHead& head) {
    const std::int64_t blocks = blocks_of(head);
    float* at = head.bounds;
    center_length = *at;
    center = at + 1;
    left = center + centre_size(*head.call);
    right = left + blocks;
    radius = right + blocks;
    length = radius + blocks;
    centroid = length + blocks;
  }
};

// Rounding of a dot product of D floats, relative to the product of the lengths; twice over, for
// the score itself is rounded too.
inline float slack_of(std::int64_t depth) { return static_cast<float>(depth + 8) * 0x1p-23f; }

// |x - center|, or |x|.
inline float length_of(const float* x, const float* center, std::int64_t depth) {
  Floats sum = {};
  std::int64_t d = 0;
  for (; d + kLanes <= depth; d += kLanes) {
    const Floats difference = center ? load(x + d) - load(center + d) : load(x + d);
    sum += difference * difference;
  }
  float rest = 0;
  for (; d < depth; ++d) {
    const float difference = x[d] - (center ? center[d] : 0.0f);
    rest += difference * difference;
  }
  return std::sqrt(sum_of(sum) + rest);
}

// The larger, and NaN where either is: a key that is NaN must be met.
inline float wider(float a, float b) { return b > a || b != b ? b : a; }

inline float larger_of(float a, float b) { return a > b ? a : b; }

inline void mean_of(const float* rows, std::int64_t count, std::int64_t depth, float* mean) {
  for (std::int64_t d = 0; d < depth; ++d) mean[d] = 0;
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t d = 0; d < depth; ++d) mean[d] += rows[r * depth + d];
  const float scale = 1.0f / static_cast<float>(count);
  for (std::int64_t d = 0; d < depth; ++d) mean[d] *= scale;
}

// A side's bounds hold for all blocks from there outward.
inline void spread_outward(const KeyBounds& bounds, std::int64_t blocks) {
  for (std::int64_t b = 1; b < blocks; ++b) bounds.left[b] = wider(bounds.left[b], bounds.left[b - 1]);
  for (std::int64_t b = blocks - 2; b >= 0; --b)
    bounds.right[b] = wider(bounds.right[b], bounds.right[b + 1]);
}

// keys: (n, D), or null: they are then read block by block.
inline void make_key_bounds(const AttentionHead& head, const float* keys) {
  const std::int64_t depth = head.call->head_dim, blocks = blocks_of(head);
  const std::int64_t block = key_block(*head.call);
  float copy[kMostKeys * kMostDepth];
  const auto block_at = [&](std::int64_t b, std::int64_t count) -> const float* {
    if (keys) return keys + b * block * depth;
    read_rows(head.call->k, head.call->dtype, head.first + b * block, head.head, count, depth,
              copy);
    return copy;
  };
  KeyBounds bounds(head);
  const float slack = slack_of(depth);
  const auto count_of = [&](std::int64_t b) {
    const std::int64_t left = head.n - b * block;
    return left < block ? left : block;
  };
  for (std::int64_t d = 0; d < depth; ++d) bounds.center[d] = 0;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t count = count_of(b);
    float* centroid = bounds.centroid + b * depth;
    mean_of(block_at(b, count), count, depth, centroid);
    const float share = static_cast<float>(count) / static_cast<float>(head.n);
    for (std::int64_t d = 0; d < depth; ++d) bounds.center[d] += share * centroid[d];
  }
  const float center_length = length_of(bounds.center, nullptr, depth);
  *head.bounds = center_length;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t count = count_of(b);
    const float* centroid = bounds.centroid + b * depth;
    const float* rows = block_at(b, count);
    float from_center = 0, from_centroid = 0, longest = 0;
    for (std::int64_t r = 0; r < count; ++r) {
      const float* row = rows + r * depth;
      from_center = wider(from_center, length_of(row, bounds.center, depth));
      from_centroid = wider(from_centroid, length_of(row, centroid, depth));
      longest = wider(longest, length_of(row, nullptr, depth));
    }
    const float length = length_of(centroid, nullptr, depth);
    bounds.left[b] = bounds.right[b] = from_center * (1 + slack) + slack * (longest + center_length);
    bounds.radius[b] = from_centroid * (1 + slack) + slack * (longest + length);
    bounds.length[b] = length;
  }
  spread_outward(bounds, blocks);
}

// Of each query in q (D, strip): its square, and its product with the mean key.
template <int C>
inline void measure_queries(const AttentionHead& head, const float* q, Floats (&square)[C],
                            Floats (&along)[C]) {
  const KeyBounds bounds(head);
  for (int c = 0; c < C; ++c) square[c] = along[c] = Floats{};
  for (std::int64_t d = 0; d < head.call->head_dim; ++d)
    for (int c = 0; c < C; ++c) {
      const Floats x = load(q + d * Strip<C>::kWidth + c * kLanes);
      square[c] += x * x;
      along[c] += x * bounds.center[d];
    }
}

// What may still be left out of each query's row, as a share of the row's mass.
//
// A block may go if it carries at most its own small allotment, or at most half of what is left of
// a pool: mass falls off fast with the distance, so one that is half as heavy follows. Together
// never more than the pool and all allotments.
template <int C>
struct Ledger {
  Ints live[C];  // lanes with a query
  Floats spent[C];
  float allotment, pool;
  float most;  // log2 of what no block may pass

  void start(const AttentionHead& head, std::int64_t queries) {
    const auto eps = static_cast<float>(head.call->skip_eps);
    allotment = eps / 8 / static_cast<float>(blocks_of(head));
    pool = 0.374f * eps;  // 3/8, less what adding up may round away
    for (int c = 0; c < C; ++c) {
      spent[c] = Floats{};
      live[c] = counting() < static_cast<float>(queries - c * kLanes);
    }
    most = std::log2(larger_of(pool * 0.5f, allotment)) + 1e-5f;
  }

  // Whether `share` may be left out; if so it is.
  bool take(const Floats (&share)[C]) {
    Ints met = {};
    for (int c = 0; c < C; ++c)
      met |= ~(share[c] <= larger((pool - spent[c]) * 0.5f, splat(allotment))) & live[c];
    if (any(met)) return false;
    for (int c = 0; c < C; ++c) spent[c] += as_floats(as_ints(share[c]) & live[c]);
    return true;
  }

  // The same of 2^(top - lse).
  bool take_power(const Floats (&top)[C], const Floats (&lse)[C]) {
    Floats power[C], share[C];
    Ints met = {};
    for (int c = 0; c < C; ++c) {
      power[c] = top[c] - lse[c];
      met |= ~(power[c] <= most) & live[c];
    }
    // Most blocks matter, and that is seen without an exponential.
    if (any(met)) return false;
    for (int c = 0; c < C; ++c) share[c] = exp2_of(power[c] > 0 ? Floats{} : power[c]);
    return take(share);
  }
};

// log2 of how many times the largest of `count` weights all may weigh; a little more for rounding.
inline float mass_of(std::int64_t count) { return std::log2(static_cast<float>(count)) + 1e-5f; }

// The skip rule of one strip. All in base 2.
template <int C>
struct SkipRule {
  bool active;
  Ledger<C> ledger;
  Floats q_length[C];  // a |q|
  Floats q_center[C];  // a q.center, and the rounding of it; -1e30 in lanes without a query
  float slope, geometric, side_budget;
  float full_mass;  // of a whole block
  const float *tails, *peaks;  // of the head, at distance 0; null: ALiBi

  // square, along: |a q|^2 and a q.center.
  void start(const AttentionHead& head, const Strip<C>& strip, const Floats (&square)[C],
             const Floats (&along)[C]) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim;
    const KeyBounds bounds(head);
    ledger.start(head, strip.count);
    tails = peaks = nullptr;
    slope = geometric = 0;
    if (call.kind == BiasKind::distance) {
      const std::int64_t at = head.head * (2 * call.reach + 1) + call.reach;
      tails = call.tails + at, peaks = call.peaks + at;
    } else {
      slope = slope_of(head);
      geometric = -std::log2(-std::expm1(-slope * 0.69314718f)) + 1e-5f;
    }
    side_budget = std::log2(static_cast<float>(call.skip_eps) / 4);
    full_mass = mass_of(key_block(call));
    const float slack = slack_of(depth);
    for (int c = 0; c < C; ++c) {
      float length[kLanes];
      store(length, square[c]);
      for (int lane = 0; lane < kLanes; ++lane) length[lane] = std::sqrt(length[lane]);
      q_length[c] = ledger.live[c] ? load(length) * (1 + slack) : Floats{};
      q_center[c] = (ledger.live[c] ? along[c] : splat(-1e30f)) +
                    slack * bounds.center_length * q_length[c];
    }
  }

  // line[x] for queries x after `nearest` (a position).
  Floats along(const AttentionHead& head, const float* line, const Strip<C>& strip, int c,
               float nearest) const {
    const Attention& call = *head.call;
    if (call.contiguous)
      return load(line + strip.first + c * kLanes - static_cast<std::int64_t>(nearest));
    const auto reach = static_cast<float>(call.reach);
    Floats result;
    for (int lane = 0; lane < kLanes; ++lane) {
      float x = strip.position[c][lane] - nearest;
      x = x > reach ? reach : x < -reach ? -reach : x;
      result[lane] = line[static_cast<std::int64_t>(x)];
    }
    return result;
  }

  // By the bias alone, what all keys from `nearest` outward weigh together.
  Floats beyond(const AttentionHead& head, const Strip<C>& strip, int c, float nearest) const {
    if (tails) return along(head, tails, strip, c, nearest);
    return geometric - slope * magnitude(strip.position[c] - nearest);
  }

  // The same of `count` of them, `each` being log2 of that.
  Floats block(const AttentionHead& head, const Strip<C>& strip, int c, float nearest,
               float each) const {
    if (!tails)
      return (each < geometric ? each : geometric) -
             slope * magnitude(strip.position[c] - nearest);
    const Floats all = along(head, tails, strip, c, nearest);
    const Floats some = along(head, peaks, strip, c, nearest) + each;
    return some < all ? some : all;
  }

  // Whether everything from `nearest` (a position) outward is beyond the rule; `reach` is the
  // largest |k - center| there, `lse` a lower bound of the log-sum-exp so far.
  bool ends(const AttentionHead& head, const Strip<C>& strip, float nearest, float reach,
            const Floats (&lse)[C]) const {
    Ints met = {};
    for (int c = 0; c < C; ++c) {
      const Floats most = q_length[c] * reach + q_center[c] + beyond(head, strip, c, nearest);
      met |= ~(most <= lse[c] + side_budget);
    }
    return !any(met);
  }

  // Whether a block can go without its keys being met: by its centre and radius. dot: a q.centroid.
  bool drops(const AttentionHead& head, const Strip<C>& strip, const KeyBounds& bounds,
             std::int64_t index, std::int64_t count, const Floats (&dot)[C], float nearest,
             const Floats (&lse)[C]) {
    const float slack = slack_of(head.call->head_dim) * bounds.length[index];
    const float spread = bounds.radius[index] + slack;
    const float each = count == key_block(*head.call) ? full_mass : mass_of(count);
    Floats top[C];
    for (int c = 0; c < C; ++c)
      top[c] = dot[c] + q_length[c] * spread + block(head, strip, c, nearest, each);
    return ledger.take_power(top, lse);
  }

  // Whether it can once its largest scores are known.
  bool drops(const Floats (&scores)[C], std::int64_t count, const Floats (&lse)[C]) {
    Floats top[C];
    for (int c = 0; c < C; ++c) top[c] = scores[c] + mass_of(count);
    return ledger.take_power(top, lse);
  }
};

// A lower bound of log2(m, l) = m + log2(l): the exponent of l is at most its logarithm.
template <int C>
PYENC_INLINE void lse_floor(const Floats (&m)[C], const Floats (&l)[C], Floats (&lse)[C]) {
  for (int c = 0; c < C; ++c)
    lse[c] = m[c] + (__builtin_convertvector(as_ints(l[c]) >> 23, Floats) - 127.0f);
}

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

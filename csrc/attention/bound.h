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

#include "attention/key_bounds.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

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
    full_mass = mass_of(key_block(head));
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
    const float each = count == key_block(head) ? full_mass : mass_of(count);
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

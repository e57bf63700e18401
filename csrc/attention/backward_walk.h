// What the backward kernels share of a strip of queries: what is known of its rows, which blocks it
// meets, and the gradient of a bias by distance.
#pragma once

#include <cmath>

#include "attention/bound.h"
#include "attention/dropout.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

inline std::int64_t padded(std::int64_t depth) { return (depth + kLanes - 1) / kLanes * kLanes; }

constexpr std::int64_t kWidest = kColumns * kLanes;
constexpr float kFaintestRow = -1e30f;

// Where a tile's gradients of keys, values and bias are added up.
struct Sums {
  float *keys, *values;  // (n, padded)
  GradBias bias;
};

template <int C>
struct BackwardStrip {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;

  Strip<C> strip;
  // In lanes without a query so large that p is 0. p = share 2^(score - shift), in base 2: of a
  // log-sum-exp, 1 and it; of a score near the largest and the sum of the weights beside it, which keep
  // digits that the log-sum-exp of large scores has no room for, one by that sum and that score.
  Floats lse[C], shift[C], share[C];
  Floats delta[C];
  Floats due[C];  // grad_lse
  KeyRange met;
  Ledger<C> ledger;
  Dropout<C> dropout;  // where there is any
  // Sum of p, and of p dp. Where a bias by distance is learned, a strip is measured first: whatever
  // made the bias sums ds over all of a row, which leaves what delta is off, once a pair. Taken from
  // `out` that is what `out` was rounded by; taken from the same p and dp it cancels.
  Floats mass[C], due_mass[C];

  // grad_out, out: (queries of the strip, D); `together`: keys that a walk's layout keeps together, from
  // the first on.
  void take_rows(const AttentionHead& head, const AttentionBackward& result, const float* grad_out,
                 const float* out, std::int32_t together = 1) {
    const Attention& call = *head.call;
    const std::int64_t depth = call.head_dim, token = head.first + strip.first;
    for (int c = 0; c < C; ++c) {
      lse[c] = shift[c] = splat(3e38f);
      delta[c] = due[c] = Floats{};
      share[c] = splat(1.0f);
    }
    for (std::int64_t i = 0; i < strip.count; ++i) {
      const std::int64_t place = (token + i) * call.n_heads + head.head;
      double along = 0;
      for (std::int64_t d = 0; d < depth; ++d)
        along += static_cast<double>(grad_out[i * depth + d]) * out[i * depth + d];
      const float grad_lse = result.grad_lse ? result.grad_lse[place] : 0.0f;
      delta[i / kLanes][i % kLanes] = static_cast<float>(along - grad_lse);
      due[i / kLanes][i % kLanes] = grad_lse;
      // A row whose every key a dense bias pushed that far down has weights only by what rounding
      // left of its scores: no gradient comes from it.
      const float whole = result.lse[place];
      float known = whole < kFaintestRow ? 3e38f : whole * kLog2e, from = known;
      if (result.shift) {
        const float total = result.total[place];
        from = total > 0 ? result.shift[place] : 3e38f;
        known = from;
        // Of what is left out alone.
        if (head.skips && total > 0) known += std::log2(total);
        share[i / kLanes][i % kLanes] = total > 0 ? 1 / total : 0.0f;
      }
      lse[i / kLanes][i % kLanes] = known;
      shift[i / kLanes][i % kLanes] = from;
    }
    // The forward's strips may be narrower.
    met = {static_cast<std::int32_t>(head.n), 0};
    for (std::int64_t i = 0; i < strip.count; ++i) {
      const KeyRange range = result.ranges[(token + i) * call.n_heads + head.head];
      met.first = range.first < met.first ? range.first : met.first;
      met.last = range.last > met.last ? range.last : met.last;
    }
    // Whatever it says, nothing beyond the sequence is read, and no key that others go with alone.
    const std::int32_t n = static_cast<std::int32_t>(head.n);
    met.first = met.first < 0 ? 0 : met.first - met.first % together;
    met.last = met.last < n ? met.last : n;
    if (met.last % together) met.last += together - met.last % together;
    if (met.last > n) met.last = n;
    for (int c = 0; c < C; ++c) mass[c] = due_mass[c] = Floats{};
    if (head.skips) ledger.start(head, strip.count);
    if (call.drops()) dropout.start(head, strip);
  }

  // Once all blocks are measured: delta = sum p dp / sum p - grad_lse, and the blocks are met anew.
  void settle(const AttentionHead& head) {
    for (int c = 0; c < C; ++c)
      delta[c] = mass[c] > 0 ? due_mass[c] / mass[c] - due[c] : delta[c];
    if (head.skips) ledger.start(head, strip.count);
  }

  // Whether any of keys [first, last), which the forward met, is seen, and how they lie.
  bool meets(const AttentionHead& head, std::int64_t first, std::int64_t last,
             Placement& place) const {
    place = placement(head, strip, first, last);
    return place.side != Side::none;
  }

  // s (count, strip), scores but for `row`, becomes p; false where the block is left out. top: the
  // largest of each query.
  bool take_weights(const AttentionHead& head, const Placement& place, const Floats (&row)[C],
                    Floats (&top)[C], std::int64_t count, float* s) {
    const bool may_drop = head.skips && place.side != Side::both;
    for (int c = 0; c < C; ++c) top[c] += row[c] + mass_of(count);
    if (may_drop && ledger.take_power(top, lse)) return false;
    Floats sum[C] = {};
    for (std::int64_t j = 0; j < count; ++j)
      for (int c = 0; c < C; ++c) {
        float* at = s + j * kWidth + c * kLanes;
        const Floats p = weight_of(load(at) - (shift[c] - row[c])) * share[c];
        store(at, p);
        sum[c] += p;
      }
    return !(may_drop && ledger.take(sum));
  }

  // What keys [first, last) add to mass and due_mass; walk: this strip, which knows p and dp.
  template <class Walk, class Memory>
  void measure_block(Walk& walk, const AttentionHead& head, std::int64_t first, std::int64_t last,
                     const Memory& scratch) {
    if (!walk.weigh(head, first, last, scratch)) return;
    Floats here[C] = {}, due_here[C] = {};
    const float* factor = factors(head, first, last - first, scratch.bias);
    walk.each_dp(head, first, last - first, scratch, [&](std::int64_t at, int c, Floats dp) {
      const Floats p = load(scratch.s + at);
      here[c] += p;
      due_here[c] += factor ? p * (load(factor + at) * dp) : p * dp;
    });
    for (int c = 0; c < C; ++c) {
      mass[c] += here[c];
      due_mass[c] += due_here[c];
    }
  }

  // scratch.ds = p (dp - delta) of keys [first, first + count); p is then what the values were
  // multiplied with, less what dropout left out.
  template <class Walk, class Memory>
  void turn_back(Walk& walk, const AttentionHead& head, std::int64_t first, std::int64_t count,
                 const Memory& scratch) {
    const float* factor = factors(head, first, count, scratch.bias);
    walk.each_dp(head, first, count, scratch, [&](std::int64_t at, int c, Floats dp) {
      const Floats p = load(scratch.s + at);
      if (!factor) return store(scratch.ds + at, p * (dp - delta[c]));
      const Floats kept = load(factor + at);
      store(scratch.ds + at, p * (kept * dp - delta[c]));
      store(scratch.s + at, p * kept);
    });
  }

  // What dropout multiplies weights with, in `room`; null without any.
  const float* factors(const AttentionHead& head, std::int64_t first, std::int64_t count,
                       float* room) const {
    if (!head.call->drops()) return nullptr;
    dropout.factors(head, first, count, room);
    return room;
  }

  // dq (D, strip) to its place; rows: room for (strip, D).
  void write_queries(const AttentionHead& head, const AttentionBackward& result, const float* dq,
                     float* rows) const {
    const std::int64_t depth = head.call->head_dim;
    transpose(dq, depth, strip.count, kWidth, rows, depth);
    put_rows(head, strip.first, strip.count, rows, depth, result.grad_q);
  }

  // ds of keys [first, first + count) to its place.
  void write_pairs(const AttentionHead& head, std::int64_t first, std::int64_t count,
                   const float* ds, float* pairs) {
    const std::int64_t side = head.call->reach;
    transpose(ds, count, strip.count, kWidth, pairs + (strip.first - head.begin) * side + first, side);
  }

  void add_line(const AttentionHead& head, std::int64_t first, std::int64_t count, const float* ds,
                const GradBias& bias) {
    const float* at = head.call->positions + head.first;
    const auto reach = static_cast<float>(bias.reach);
    for (std::int64_t j = 0; j < count; ++j)
      for (std::int64_t i = 0; i < strip.count; ++i) {
        float x = at[strip.first + i] - at[first + j];
        x = x > reach ? reach : x < -reach ? -reach : x;
        bias.line[static_cast<std::int64_t>(x)] += static_cast<double>(ds[j * kWidth + i]);
      }
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

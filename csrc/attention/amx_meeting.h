// A strip of 16 queries beside a block of 64 keys on matrix units, under way: what TileMath and
// SplitMath share of it.
#pragma once

#include "attention/amx_layout.h"
#include "attention/forward_walk.h"

#ifdef PYENC_AMX

namespace pyenc {
namespace PYENC_ISA {
namespace {

// Of a block's weights, of which none is then above it: as far from harming a sum as kHeadroom is.
constexpr float kMostSum = 0x1p14f;

template <class Math>
struct TileMeeting : Walk<1, Math>::Meeting {
  using Strip16 = Walk<1, Math>;
  static constexpr std::int64_t kBlock = kTileKeys * kTile;

  Strip16* walk;
  float* s;               // (keys, 16 queries), the scores
  float *bias, *column;   // (keys, 16 queries), or (keys,)

  std::int64_t groups() const { return (this->block.count() + kTile - 1) / kTile; }
  // Whether there are more than 32 keys.
  bool two() const { return this->block.count() > kTilePairs; }
  bool is_right() const { return this->place.side == Side::right; }

  // Of a block that is admitted. slot: which of the scratch's scores and biases.
  void start(Strip16& one, const AttentionHead& head, const Scratch<Math>& scratch,
             std::int64_t slot) {
    walk = &one;
    s = scratch.s + slot * kBlock;
    bias = scratch.bias + slot * kBlock, column = scratch.column + slot * kTileKeys;
    walk->bias(head, *this, column, bias);
    hide_beyond();
  }

  // Keys beyond the last have scores where a tile has rows for them.
  void hide_beyond() {
    const std::int64_t count = this->block.count(), rows = groups() * kTile;
    if (this->place.uniform)
      for (std::int64_t j = count; j < rows; ++j) column[j] = -kInfinity;
    else
      for (std::int64_t j = count; j < rows; ++j) store(bias + j * kTile, splat(-kInfinity));
  }

  // What a strip will write, and the queries of its place in the tile that this thread may have
  // next: a few rows a meeting, for each lies in a page of its own and all at once would be waited for.
  void fetch_some(const AttentionHead& head, const void* out) const {
    using Scalar = typename Math::Scalar;
    constexpr std::int64_t kLine = 64 / sizeof(Scalar);
    const Attention& call = *head.call;
    const Strip<1>& strip = walk->strip;
    std::int64_t& fetched = walk->queries.fetched;
    for (const std::int64_t end = fetched + 2; fetched < end;) {
      const std::int64_t row = fetched++, token = head.first + strip.first + row;
      if (row >= strip.count) return;
      const Scalar* place =
          static_cast<const Scalar*>(out) + (token * call.n_heads + head.head) * call.head_dim;
      for (std::int64_t d = 0; d < call.head_dim; d += kLine) __builtin_prefetch(place + d, 1);
      if (strip.first + row + head.next_tile < head.n)
        fetch<Scalar>(call.q, token + head.next_tile, head.head, call.head_dim);
    }
  }

  // Whether its scores alone tell that it does not matter. They are looked at where the side has had
  // such a block: before, it takes longer than it saves.
  bool is_faint(const AttentionHead& head) const {
    if (!walk->queries.faint[is_right()] || !walk->may_drop(head, *this)) return false;
    Floats top[1] = {largest(head)};
    return !walk->keep(*this, true, top);
  }

  // Takes its weights' sums, unless it can go. Whether it has.
  bool add(const AttentionHead& head, Floats sum, PairCount& count) const {
    Floats sums[1] = {sum};
    const bool kept = walk->add(*this, walk->may_drop(head, *this), sums, count);
    walk->queries.faint[is_right()] |= !kept;
    return kept;
  }

  // The largest scores, without the bias's row.
  Floats largest(const AttentionHead& head) const {
    const float scale = Math::score_scale(*head.call);
    constexpr int kTops = 4;  // a single one would wait for itself
    Floats tops[kTops];
    for (Floats& one : tops) one = splat(-kInfinity);
    // Keys beyond the last are hidden.
    for (std::int64_t j = 0; j < groups() * kTile; j += kTops)
#pragma GCC unroll 4
      for (int i = 0; i < kTops; ++i) {
        const Floats more = this->place.uniform ? splat(column[j + i]) : load(bias + (j + i) * kTile);
        tops[i] = larger(load(s + (j + i) * kTile) * scale + more, tops[i]);
      }
    return larger(larger(tops[0], tops[1]), larger(tops[2], tops[3]));
  }

  // The running maximum follows the scores.
  void follow(const AttentionHead& head) const {
    Floats top[1] = {largest(head) + this->row[0]};
    walk->raise(top, head.call->head_dim);
  }

  // Its weights are 2^(score - shift).
  Floats shift() const {
    Floats shifts[1];
    walk->shift_of(*this, shifts);
    return shifts[0];
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

#endif  // PYENC_AMX

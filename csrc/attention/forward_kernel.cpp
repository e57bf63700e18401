// Attention forward of one tile of queries, compiled once per instruction set.
//
// Queries stand in the lanes: s (keys, queries) = K Q^T, o (D, queries) += V^T p. So keys and values
// are broadcast, and maxima and sums over keys need nothing across lanes. A tile begins at its own
// place in the sequence and walks outward, so that with ALiBi the largest scores come first and the
// rule of attention/bound.h may end a side early.

#include "attention/amx.h"
#include "attention/amx_forward.h"
#include "attention/amx_split_forward.h"
#include "attention/arguments.h"
#include "attention/bound.h"
#include "attention/forward_math.h"
#include "attention/forward_walk.h"
#include "attention/tile.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

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
                    head.keys + Math::keys_size(head.n, depth));
}

template <class Math>
void forward_tile_as(AttentionHead head, std::int64_t first_query, std::int64_t last_query,
                     const AttentionForward& result, float* memory, PairCount& count) {
  const std::int64_t depth = head.call->head_dim, blocks = blocks_of(head);
  constexpr std::int64_t kKeys = Math::kKeys;
  const Scratch<Math> scratch(memory, depth);
  if (!head.keys) {
    head.keys = scratch.keys;
    copy_keys<Math>(head);
  }
  Math::read_tile(head, first_query, last_query - first_query, scratch.rows);
  Tile<WalkOf<Math>::template Strip, Math::kStrip> tile;
  typename Math::Meetings meetings(result);
  tile.start(first_query, last_query, [&](auto& walk, std::int64_t at) {
    walk.start(head, at, last_query, scratch, at - first_query);
  });
  const std::int64_t own_first = first_query / kKeys, own_last = (last_query - 1) / kKeys;
  // Each strip begins at its own place, and goes on to the tile's; beyond, they take a block in turns.
  for (int round = 0; round < 2; ++round)
    tile.each([&](auto& walk) {
      const auto meet = [&](std::int64_t b) {
        meetings.meet(walk, head, Block<Math>(head, b), scratch, count);
      };
      const std::int64_t first = walk.strip.first / kKeys;
      const std::int64_t last = (walk.strip.first + walk.strip.count - 1) / kKeys;
      if (round == 0) {
        for (std::int64_t b = first; b <= last; ++b) meet(b);
      } else {
        for (std::int64_t b = first - 1; b >= own_first; --b) meet(b);
        for (std::int64_t b = last + 1; b <= own_last; ++b) meet(b);
      }
    });
  const auto meet = [&](std::int64_t b) {
    const Block<Math> block(head, b);
    tile.each([&](auto& walk) { meetings.meet(walk, head, block, scratch, count); });
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
  meetings.finish(head, count);
  tile.each([&](auto& walk) { walk.finish(head, result, scratch.rows); });
}

// body(Math of the head, null).
template <class Body>
void with_math(const AttentionHead& head, const Body& body) {
  // Matrix units drop no weights.
#ifdef PYENC_AMX
  if (head.call->dtype == Dtype::bf16 && !head.call->drops())
    return body(static_cast<TileMath*>(nullptr));
  if (head.split) return body(static_cast<SplitMath*>(nullptr));
#endif
#ifdef PYENC_BF16_DOT
  if (head.call->dtype == Dtype::bf16) return body(static_cast<PairMath*>(nullptr));
#endif
  (void)head;
  body(static_cast<FloatMath*>(nullptr));
}

template <class Pointer>
using MathOf = std::remove_const_t<std::remove_pointer_t<Pointer>>;

// How its keys are kept, before they are read.
void choose(AttentionHead& head) {
#ifdef PYENC_AMX
  head.split = is_split(head);
#endif
  (void)head;
}

void forward_tile(const AttentionHead& given, std::int64_t first_query, std::int64_t last_query,
                  const AttentionForward& result, float* memory, PairCount& count) {
  AttentionHead head = given;
  if (!head.keys) choose(head);
  with_math(head, [&](auto math) {
    forward_tile_as<MathOf<decltype(math)>>(head, first_query, last_query, result, memory, count);
  });
}

void prepare(AttentionHead& head) {
  if (!head.keys) return;
  choose(head);
  with_math(head, [&](auto math) {
    using Math = MathOf<decltype(math)>;
    copy_keys<Math>(head);
    if (head.bounds) Math::make_bounds(head);
  });
}

// Enough for whatever choose() may find.
std::int64_t keys_size(const AttentionHead& given) {
  AttentionHead head = given;
#ifdef PYENC_AMX
  head.split = may_split(head);
#endif
  const std::int64_t depth = head.call->head_dim;
  std::int64_t size = 0;
  with_math(head, [&](auto math) {
    using Math = MathOf<decltype(math)>;
    size = Math::keys_size(head.n, depth) + Math::values_size(head.n, depth);
  });
  return size;
}

std::int64_t scratch_size(std::int64_t head_dim) {
  std::int64_t size = Scratch<FloatMath>::size(head_dim);
  const auto as_large_as = [&](std::int64_t other) { size = other > size ? other : size; };
#ifdef PYENC_BF16_DOT
  as_large_as(Scratch<PairMath>::size(head_dim));
#endif
#ifdef PYENC_AMX
  as_large_as(Scratch<TileMath>::size(head_dim));
  as_large_as(Scratch<SplitMath>::size(head_dim));
#endif
  (void)as_large_as;
  return size;
}

void exp2_all(const float* from, std::int64_t count, float* to) {
  for (std::int64_t i = 0; i < count; ++i) to[i] = exp2_of(splat(from[i]))[0];
}

std::int64_t bounds_size(std::int64_t n, std::int64_t head_dim) {
  return KeyBounds::size(n, head_dim);
}

}  // namespace

extern const AttentionForwardKernels attention_forward_kernels;
const AttentionForwardKernels attention_forward_kernels{
    {enter_thread<true>, leave_thread<true>}, exp2_all, scratch_size, keys_size, bounds_size, prepare, forward_tile};

}  // namespace PYENC_ISA
}  // namespace pyenc

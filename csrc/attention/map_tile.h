// A map's program (attention/map.h) on some scores of a strip of queries, and its gradients: by the old
// scores, and by whatever else it is made of.
//
// A few rows of keys go through all steps before the next ones do, so that what the steps leave behind
// stays in the first level of memory.
#pragma once

#include "attention/arguments.h"
#include "attention/map.h"
#include "attention/tile.h"
#include "shared/elementary.h"

namespace pyenc {
namespace PYENC_ISA {
namespace {

template <int C>
class MapTile {
  static constexpr std::int64_t kWidth = Strip<C>::kWidth;
  static constexpr std::int64_t kChunk = 512;  // floats of a value

 public:
  static constexpr std::int64_t kRows = kChunk / kWidth;  // keys that go through the steps together

  MapTile(const AttentionHead& head, const Strip<C>& strip)
      : head_(head), strip_(strip), map_(*head.call->map), first_step_(1 + map_.inputs.size()) {
    for (std::size_t i = 0; i < map_.inputs.size(); ++i) {
      const MapInput& input = map_.inputs[i];
      const float* at = input.at + head.head * input.head;
      float* to = values_[1 + i];
      switch (input.form) {
        case MapForm::number:
          store(to, splat(*at));
          places_[1 + i] = {to, 0, 0};
          break;
        case MapForm::queries:
          at += strip.first - head.begin;
          for (std::int64_t q = 0; q < kWidth; ++q) to[q] = at[q < strip.count ? q : strip.count - 1];
          places_[1 + i] = {to, 0, kLanes};
          break;
        case MapForm::keys: places_[1 + i] = {to, kLanes, 0}; break;
        case MapForm::pairs: places_[1 + i] = {to, kWidth, kLanes}; break;
      }
    }
    places_[0] = {values_[0], kWidth, kLanes};
    for (std::size_t i = 0; i < map_.steps.size(); ++i)
      places_[first_step_ + i] = {values_[first_step_ + i], kWidth, kLanes};
  }

  // New scores of `rows` keys from `key` on, of s (rows, strip).
  void run(std::int64_t key, std::int64_t rows, const float* s) {
    rows_ = rows;
    for (std::int64_t i = 0; i < rows * kWidth; i += kLanes)
      store(values_[0] + i, load(s + i));
    for (std::size_t i = 0; i < map_.inputs.size(); ++i) read(map_.inputs[i], key, values_[1 + i]);
    for (std::size_t i = 0; i < map_.steps.size(); ++i) step(map_.steps[i], values_[first_step_ + i]);
  }

  // Of result(row, vector).
  auto result() const { return places_[map_.result]; }

  // After run(): ds (rows, strip), by the new scores, becomes that by the old ones; the inputs' gradients
  // are added to theirs.
  void turn_back(std::int64_t key, float* ds) {
    bool live[kMostMapValues] = {};
    go_back(ds, map_.wanted, live);
    each([&](std::int64_t, int, std::int64_t i) {
      store(ds + i, live[0] ? load(slopes_[0] + i) : Floats{});
    });
    for (std::size_t i = 0; i < map_.inputs.size(); ++i)
      if (live[1 + i]) add_gradient(map_.inputs[i], key, slopes_[1 + i]);
  }

  // After run(): the sums over keys of p (rows, strip) times the slope by each input that has one number a
  // head, added to `sums` (inputs, strip).
  void add_along(const float* p, Floats (*sums)[C]) {
    bool live[kMostMapValues] = {};
    go_back(p, map_.of_number, live);
    for (std::size_t i = 0; i < map_.inputs.size(); ++i)
      if (live[1 + i])
        each([&](std::int64_t, int c, std::int64_t at) { sums[i][c] += load(slopes_[1 + i] + at); });
  }

 private:
  // slopes_ of the values that are wanted, from `seed` (rows, strip), the new scores'. live: which have one.
  void go_back(const float* seed, const std::vector<char>& wanted, bool* live) {
    const auto give = [&](int value, const auto& share) {
      if (!wanted[value]) return;
      float* to = slopes_[value];
      if (live[value])
        each([=](std::int64_t r, int c, std::int64_t i) { store(to + i, load(to + i) + share(r, c, i)); });
      else
        each([=](std::int64_t r, int c, std::int64_t i) { store(to + i, share(r, c, i)); });
      live[value] = true;
    };
    give(map_.result, [seed](std::int64_t, int, std::int64_t i) { return load(seed + i); });
    for (std::size_t n = map_.steps.size(); n-- > 0;) {
      const std::size_t value = first_step_ + n;
      if (live[value]) step_back(map_.steps[n], static_cast<int>(value), give);
    }
  }

  // Where a value's numbers lie: so many floats from one key to the next, and from one vector to the next.
  // Loops have copies of it: what they store might change one in memory, for all that a compiler knows.
  struct Place {
    const float* at;
    std::int64_t row, vector;

    PYENC_INLINE Floats operator()(std::int64_t r, int c) const {
      return load(at + r * row + c * vector);
    }
  };

  const AttentionHead& head_;
  const Strip<C>& strip_;
  const MapProgram& map_;
  const std::size_t first_step_;
  std::int64_t rows_ = 0;
  Place places_[kMostMapValues];
  alignas(64) float values_[kMostMapValues][kChunk];
  alignas(64) float slopes_[kMostMapValues][kChunk];

  // body(row, vector, place in a full value)
  template <class Body>
  PYENC_INLINE void each(const Body body) const {
    const std::int64_t rows = rows_;
    for (std::int64_t r = 0; r < rows; ++r)
      for (int c = 0; c < C; ++c) body(r, c, r * kWidth + c * kLanes);
  }

  void read(const MapInput& input, std::int64_t key, float* to) const {
    const float* from = input.at + head_.head * input.head;
    if (input.form == MapForm::keys)
      for (std::int64_t r = 0; r < rows_; ++r) store(to + r * kLanes, splat(from[key + r]));
    if (input.form != MapForm::pairs) return;
    if (strip_.count < kWidth)
      for (std::int64_t i = 0; i < rows_ * kWidth; i += kLanes) store(to + i, Floats{});
    const std::int64_t side = head_.call->reach;
    transpose(from + (strip_.first - head_.begin) * side + key, strip_.count, rows_, side, to, kWidth);
  }

  void step(const MapStep& made, float* to) const {
    const Place a = places_[made.a], b = places_[made.b], last = places_[made.c];
    const auto one = [&](const auto of) {
      each([=](std::int64_t r, int c, std::int64_t i) { store(to + i, of(a(r, c))); });
    };
    const auto two = [&](const auto of) {
      each([=](std::int64_t r, int c, std::int64_t i) { store(to + i, of(a(r, c), b(r, c))); });
    };
    switch (made.op) {
      case MapOp::add: return two([](Floats x, Floats y) { return x + y; });
      case MapOp::subtract: return two([](Floats x, Floats y) { return x - y; });
      case MapOp::multiply: return two([](Floats x, Floats y) { return x * y; });
      case MapOp::divide: return two([](Floats x, Floats y) { return x / y; });
      // The first where either is no number, and the second where that is one.
      case MapOp::larger:
      case MapOp::at_least:
        return two([](Floats x, Floats y) { return (x < y) | (y != y) ? y : x; });
      case MapOp::smaller:
      case MapOp::at_most:
        return two([](Floats x, Floats y) { return (x > y) | (y != y) ? y : x; });
      case MapOp::greater:
        return two([](Floats x, Floats y) { return x > y ? splat(1.0f) : Floats{}; });
      case MapOp::greater_equal:
        return two([](Floats x, Floats y) { return x >= y ? splat(1.0f) : Floats{}; });
      case MapOp::where:
        return each([=](std::int64_t r, int c, std::int64_t i) {
          store(to + i, a(r, c) != 0.0f ? b(r, c) : last(r, c));
        });
      case MapOp::negative: return one([](Floats x) { return -x; });
      case MapOp::magnitude: return one([](Floats x) { return magnitude(x); });
      case MapOp::exp: return one([](Floats x) { return exp_of(x); });
      case MapOp::tanh: return one([](Floats x) { return tanh_of(x); });
      case MapOp::sigmoid: return one([](Floats x) { return sigmoid(x); });
      case MapOp::sqrt: return one([](Floats x) { return root_of(x); });
    }
  }

  template <class Give>
  void step_back(const MapStep& made, int value, const Give& give) const {
    const float* slope = slopes_[value];
    // share(g, a, b, y) of the gradient g and the values.
    const Place a = places_[made.a], b = places_[made.b], y = places_[value];
    const auto to = [&](int whose, const auto share) {
      give(whose, [=](std::int64_t r, int c, std::int64_t i) {
        return share(load(slope + i), a(r, c), b(r, c), y(r, c));
      });
    };
    const auto whole = [](Floats g, Floats, Floats, Floats) { return g; };
    switch (made.op) {
      case MapOp::add:
        to(made.a, whole);
        return to(made.b, whole);
      case MapOp::subtract:
        to(made.a, whole);
        return to(made.b, [](Floats g, Floats, Floats, Floats) { return -g; });
      case MapOp::multiply:
        to(made.a, [](Floats g, Floats, Floats b, Floats) { return g * b; });
        return to(made.b, [](Floats g, Floats a, Floats, Floats) { return g * a; });
      case MapOp::divide:
        to(made.a, [](Floats g, Floats, Floats b, Floats) { return g / b; });
        return to(made.b, [](Floats g, Floats, Floats b, Floats y) { return -g * (y / b); });
      case MapOp::larger:
        to(made.a, [](Floats g, Floats a, Floats b, Floats) { return shared(g, a > b, a == b); });
        return to(made.b, [](Floats g, Floats a, Floats b, Floats) { return shared(g, b > a, a == b); });
      case MapOp::smaller:
        to(made.a, [](Floats g, Floats a, Floats b, Floats) { return shared(g, a < b, a == b); });
        return to(made.b, [](Floats g, Floats a, Floats b, Floats) { return shared(g, b < a, a == b); });
      case MapOp::at_least:
        return to(made.a, [](Floats g, Floats a, Floats b, Floats) { return a >= b ? g : Floats{}; });
      case MapOp::at_most:
        return to(made.a, [](Floats g, Floats a, Floats b, Floats) { return a <= b ? g : Floats{}; });
      case MapOp::greater:
      case MapOp::greater_equal: return;
      case MapOp::where:
        to(made.b, [](Floats g, Floats a, Floats, Floats) { return a != 0.0f ? g : Floats{}; });
        return to(made.c, [](Floats g, Floats a, Floats, Floats) { return a != 0.0f ? Floats{} : g; });
      case MapOp::negative: return to(made.a, [](Floats g, Floats, Floats, Floats) { return -g; });
      case MapOp::magnitude:
        return to(made.a, [](Floats g, Floats a, Floats, Floats) {
          return a > 0.0f ? g : (a < 0.0f ? -g : Floats{});
        });
      case MapOp::exp: return to(made.a, [](Floats g, Floats, Floats, Floats y) { return g * y; });
      case MapOp::tanh:
        return to(made.a, [](Floats g, Floats, Floats, Floats y) { return g * (1.0f - y * y); });
      case MapOp::sigmoid:
        return to(made.a, [](Floats g, Floats, Floats, Floats y) { return g * (y * (1.0f - y)); });
      case MapOp::sqrt:
        return to(made.a, [](Floats g, Floats, Floats, Floats y) { return g * (0.5f / y); });
    }
  }

  static PYENC_INLINE Floats shared(Floats g, Ints whole, Ints half) {
    return whole ? g : (half ? 0.5f * g : Floats{});
  }

  // Lanes beyond the strip's queries may hold anything.
  void add_gradient(const MapInput& input, std::int64_t key, float* slope) const {
    const Attention& call = *head_.call;
    const std::int64_t head = head_.sequence * call.n_heads + head_.head, side = call.reach;
    const std::int64_t row = strip_.first - head_.begin;
    if (input.form == MapForm::pairs) {
      float* to = static_cast<float*>(input.grad) + (head * call.rows + row) * side + key;
      return transpose(slope, rows_, strip_.count, kWidth, to, side);
    }
    auto* to = static_cast<double*>(input.grad);
    if (input.form == MapForm::queries) {
      for (std::int64_t i = 0; i < strip_.count; ++i) {
        double sum = 0;
        for (std::int64_t r = 0; r < rows_; ++r) sum += static_cast<double>(slope[r * kWidth + i]);
        to[head * call.rows + row + i] += sum;
      }
      return;
    }
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t i = strip_.count; i < kWidth; ++i) slope[r * kWidth + i] = 0;
    double all = 0;
    for (std::int64_t r = 0; r < rows_; ++r) {
      Floats sum = load(slope + r * kWidth);
      for (int c = 1; c < C; ++c) sum += load(slope + r * kWidth + c * kLanes);
      const auto one = static_cast<double>(sum_of(sum));
      if (input.form == MapForm::keys)
        to[head * side + key + r] += one;
      else
        all += one;
    }
    if (input.form == MapForm::number) to[head] += all;
  }
};

}  // namespace
}  // namespace PYENC_ISA
}  // namespace pyenc

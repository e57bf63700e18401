// A map of one's own, score(s, i, j), as a straight program over tiles of scores. Traced by
// pyenc/ops/attention/map_program.py, whose codes these are; run by attention/map_tile.h.
//
// A value is known by its number: 0 is the score, then come the inputs (whatever the map has from i, j
// and its own tensors), then the results of the steps in their order.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace pyenc {

constexpr std::size_t kMostMapValues = 32;

enum class MapOp : int {
  add = 0, subtract, multiply, divide,
  larger, smaller,       // of two that both learn; where they are alike each has half
  at_least, at_most,     // a, but no less or more than b, which learns nothing
  greater, greater_equal,  // 1 or 0
  where,                 // a != 0 ? b : c
  negative, magnitude, exp, tanh, sigmoid, sqrt,
};
constexpr int kMapOps = static_cast<int>(MapOp::sqrt) + 1;

struct MapStep {
  MapOp op;
  int a, b, c;  // values; those that the op has not are a again
};

// What an input has a number for: each head; each of its keys, or queries of the slab; each pair.
enum class MapForm : int { number = 0, keys, queries, pairs };

struct MapInput {
  const float* at;    // (heads, ...)
  std::int64_t head;  // from one head to the next; 0 where all have the same
  MapForm form;
  // To which its gradient is added, (n_sequences, H, ...): floats of pairs, doubles otherwise; null where
  // it has none. Pairs that a window hides are not written.
  void* grad;
};

struct MapProgram {
  std::vector<MapInput> inputs;
  std::vector<MapStep> steps;
  int result;
  std::vector<char> wanted;  // of each value: whether it has a gradient
  // Whether it is of an input that has one number a head and a gradient; and whether there is one.
  std::vector<char> of_number;
  bool has_number = false;
  bool has_pairs = false;  // whether one has a number a pair, and a gradient

  MapProgram(std::vector<MapInput> given, std::vector<MapStep> made, int made_last)
      : inputs(std::move(given)), steps(std::move(made)), result(made_last) {
    const std::size_t first = 1 + inputs.size(), count = first + steps.size();
    if (count > kMostMapValues) throw std::invalid_argument("a map of too many values");
    const auto below = [](int value, std::size_t end) {
      return value >= 0 && static_cast<std::size_t>(value) < end;
    };
    if (!below(result, count)) throw std::invalid_argument("a map's result is none of its values");
    wanted.assign(count, 0);
    of_number.assign(count, 0);
    wanted[0] = 1;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      wanted[1 + i] = inputs[i].grad != nullptr;
      of_number[1 + i] = wanted[1 + i] && inputs[i].form == MapForm::number;
      has_number |= of_number[1 + i] != 0;
      has_pairs |= wanted[1 + i] && inputs[i].form == MapForm::pairs;
    }
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const MapStep& step = steps[i];
      const int op = static_cast<int>(step.op);
      if (op < 0 || op >= kMapOps || !below(step.a, first + i) || !below(step.b, first + i) ||
          !below(step.c, first + i))
        throw std::invalid_argument("a map's step wants what is not there yet");
      wanted[first + i] = wanted[step.a] || wanted[step.b] || wanted[step.c];
      of_number[first + i] = of_number[step.a] || of_number[step.b] || of_number[step.c];
    }
  }
};

}  // namespace pyenc

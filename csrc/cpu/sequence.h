// How a layer is laid out over time, batch and threads; shared by forward.h and backward.h.
//
// Work goes in chunks of time steps, so that the projected inputs (forward) or the gate gradients
// (backward) of a chunk are one product over many rows and stay in the cache until they are used.
// Threads take directions first, then slices of the batch: a slice runs through all its steps without
// waiting for anyone. Only when the batch is too small for that, and a step large, do they share the
// units of each step.
#pragma once

#include "gemm.h"
#include "kernels.h"

namespace rnnkernels::cpu::RNNKERNELS_ISA {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out the workspace; from a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += divide_up(count * int64_t(sizeof(T)), kWorkspaceAlignment) * kWorkspaceAlignment;
    return piece;
  }
  template <class T>
  Matrix<T> take_rows(int64_t rows, int64_t columns) {
    const int64_t stride = padded_row<T>(columns);
    return {take<T>(rows * stride), stride};
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// [first, last): batch rows, panels, time steps.
struct Range {
  int64_t first, last;

  int64_t size() const { return last - first; }
};

// The share of part `part` of `parts`.
inline Range share(int64_t count, int64_t part, int64_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

// A run of gate gradients in a row of dG, and the rows of a weight they meet; in gates.
struct SegmentOfGates {
  int gradient, weight, count;

  Segment of(int64_t hidden) const { return {gradient * hidden, weight * hidden, count * hidden}; }
};

// Which rows are active when.
class Steps {
 public:
  Steps(const Layer& layer, Arena& arena)
      : steps_(layer.steps),
        batch_(layer.batch),
        batch_sizes_(layer.batch_sizes),
        offsets_(layer.batch_sizes == nullptr ? nullptr : arena.take<int64_t>(layer.steps + 1)) {}

  // To be called once, when the workspace is there.
  void fill_offsets() {
    if (batch_sizes_ == nullptr) return;
    offsets_[0] = 0;
    for (int64_t t = 0; t < steps_; ++t) offsets_[t + 1] = offsets_[t] + batch_sizes_[t];
  }

  int64_t count() const { return steps_; }
  // Rows before step t.
  int64_t offset(int64_t t) const { return offsets_ == nullptr ? t * batch_ : offsets_[t]; }
  // Active rows of step t; none before the first step and after the last.
  int64_t active(int64_t t) const {
    if (t < 0 || t >= steps_) return 0;
    return batch_sizes_ == nullptr ? batch_ : batch_sizes_[t];
  }
  // The active rows of a slice come first in it.
  int64_t active(int64_t t, Range slice) const {
    return larger(smaller(active(t), slice.last) - slice.first, 0);
  }

  // Slice `index` of `count`: the batch cut into contiguous slices of about as many active elements each.
  Range slice(int64_t index, int64_t count) const {
    if (batch_sizes_ == nullptr) return share(batch_, index, count);
    return {cut(index, count), cut(index + 1, count)};
  }

  // Where row b of step t of a view starts.
  template <class S>
  const S* row(const RowsView& view, int64_t t, int64_t b) const {
    const S* data = static_cast<const S*>(view.data);
    return offsets_ == nullptr ? data + t * view.step + b * view.row : data + (offsets_[t] + b) * view.row;
  }

  // True when the rows of a slice over consecutive steps are evenly spaced: then *stride is their distance.
  bool evenly_spaced(const RowsView& view, Range slice, int64_t* stride) const {
    const bool whole_batch = slice.first == 0 && slice.last == batch_;
    if (batch_sizes_ == nullptr && slice.size() == 1) {
      *stride = view.step;
      return true;
    }
    *stride = view.row;
    return whole_batch && (batch_sizes_ != nullptr || view.step == batch_ * view.row);
  }

 private:
  // The first row of slice `index`, such that the largest slice has as few elements as can be.
  int64_t cut(int64_t index, int64_t count) const {
    if (index == 0) return 0;
    if (index == count) return batch_;
    int64_t total = 0;
    for (int64_t t = 0; t < steps_; ++t) total += batch_sizes_[t];
    int64_t too_few = total / count - 1, enough = total;
    while (enough - too_few > 1) {
      const int64_t most = (too_few + enough) / 2;
      (first_row(count, most) == batch_ ? enough : too_few) = most;
    }
    return first_row(index, enough);
  }

  // The first row of slice `index`, or the end of the batch, if slices in turn take rows while they have at most `most` elements.
  int64_t first_row(int64_t index, int64_t most) const {
    int64_t length = steps_, elements = 0;
    for (int64_t row = 0; row < batch_; ++row) {
      while (length > 0 && batch_sizes_[length - 1] <= row) --length;
      elements += length;
      if (elements <= most || row == 0) continue;
      if (--index == 0) return row;
      elements = length;
    }
    return batch_;
  }

  int64_t steps_, batch_;
  const int64_t* batch_sizes_;
  int64_t* offsets_;  // (T + 1), packed only
};

// Runs body(i) for i in [0, count) on the pool; in the calling thread when there is too little to share.
template <class Body>
void run_tasks(const Parallel& parallel, int64_t count, bool worth_sharing, const Body& body) {
  if (count <= 1 || parallel.threads <= 1 || !worth_sharing) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  parallel.run(
      parallel.pool, count, [](void* context, int64_t i) { (*static_cast<const Body*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Waking the pool costs about as much as this many multiply-adds.
inline constexpr int64_t kWorthSharing = 100000;

// Whether so many rows of a layer have them, in W_ih x and W_hh h'.
inline bool worth_sharing(const Layer& layer, int gates, int64_t rows) {
  return rows * layer.hidden_size * gates * (layer.input_size + layer.state_size) >= kWorthSharing;
}

// Fewer rows do not repay the packing of weights forward: their products read them as they lie.
inline constexpr int64_t kForwardRowsWorthPacking = 20;

// A single step uses its weights once.
inline bool packs_for_one_use(const Layer& layer) { return layer.steps == 1 && layer.rows >= kForwardRowsWorthPacking; }

// How the recurrence is divided: slices per direction, or the units of each step.
struct Division {
  int64_t slices;
  bool by_units;
};

inline Division divide(const Layer& layer, int gates, int threads, bool may_share_units = true) {
  const int64_t per_direction = larger(threads / layer.directions, 1);
  const int64_t step_work = gates * layer.hidden_size * layer.state_size * layer.batch;
  // With fewer rows than this a slice spends its time fetching weights, which sharing units halves. Meeting after each step costs
  // about as much as a fifth of so many products.
  constexpr int64_t kFewRows = 3, kStepWorthSharing = 19000;
  // Shorter steps gain where there are enough of them to repay waking the pool, and where threads do not write to the same cache
  // line at every step: rows of other sizes have units of two threads on one.
  constexpr int64_t kShortStepWorthSharing = 11000, kUnitsOfLines = 32;
  const bool short_steps_repay = step_work >= kShortStepWorthSharing && worth_sharing(layer, gates, layer.rows) &&
                                 layer.hidden_size % kUnitsOfLines == 0;
  // With fewer than this it still gains a little by fetching a share of the weights only, if steps are long enough to wait for
  // whoever is late. More so where the weights come from a cache that other cores use, too: more than 4 MiB of float32.
  constexpr int64_t kSomeRows = 12, kRowsOfLargeWeights = 48, kLargeWeights = 1 << 20, kStepWorthWaiting = 1000000;
  const bool large_weights = gates * layer.hidden_size * layer.state_size > kLargeWeights;
  const bool by_units =
      may_share_units && !layer.has_projection && per_direction > 1 &&
      ((layer.batch < kFewRows * per_direction && (step_work >= kStepWorthSharing || short_steps_repay)) ||
       (layer.batch < (large_weights ? kRowsOfLargeWeights : kSomeRows) * per_direction &&
        step_work >= kStepWorthWaiting * per_direction));
  if (by_units) return {1, true};
  return {larger(smaller(per_direction, layer.batch), 1), false};
}

// The same for the forward pass alone. A single step has nobody to wait for: whoever takes units reads only a share of the weights.
inline Division divide_forward(const Layer& layer, int gates, int threads) {
  if (packs_for_one_use(layer) && !layer.has_projection && threads > layer.directions) return {1, true};
  return divide(layer, gates, threads);
}

}  // namespace rnnkernels::cpu::RNNKERNELS_ISA

#include "stepwise.h"

#include <algorithm>
#include <iterator>

namespace rnnkernels::cuda {
namespace {

// Forward's i-th step in both directions.
template <class Arguments>
void go_to(Arguments& arguments, const StepOrder& order, int64_t i) {
  for (int d = 0; d < arguments.sequence.directions; ++d) arguments.step[d] = order.rows(d, i);
}

// Where the output's gradient of forward's i-th step is.
template <class Arguments>
void find_grad_output(Arguments& arguments, const StepOrder& order, int64_t i, bool dense, int64_t grad_output_step) {
  for (int d = 0; d < arguments.sequence.directions; ++d)
    arguments.dh.output_first[d] =
        dense ? order.time(d, i) * grad_output_step : arguments.step[d].first * arguments.dh.output_row;
}

}  // namespace

int64_t rows_at_work(const Sequence& sequence, const StepRows (&step)[kMostDirections]) {
  int most = 0;
  for (int d = 0; d < sequence.directions; ++d) most = std::max(most, step[d].active);
  return most;
}

int64_t rows_at_work(const Sequence& sequence, const StepRows (&step)[kMostDirections], const StepHiddenGradient& dh) {
  int most = int(rows_at_work(sequence, step));
  for (int d = 0; d < sequence.directions; ++d) most = std::max(most, dh.known[d]);
  return most;
}

void run_forward(const StepOrder& order, StepForwardArguments step, StepProjectionArguments* projection, StepMachine& machine) {
  for (int64_t i = 0; i < order.steps(); ++i) {
    go_to(step, order, i);
    machine.multiply(StepProduct::kRecurrent, step.step);
    machine.launch(step);
    if (projection == nullptr) continue;
    go_to(*projection, order, i);
    machine.multiply(StepProduct::kProjection, projection->step);
    machine.launch(*projection);
  }
}

void run_backward(const StepOrder& order, StepBackwardArguments step, StepProjectionBackwardArguments* projection,
                  int64_t grad_output_step, StepMachine& machine) {
  const bool dense = order.dense();
  StepHiddenGradient& dh = projection == nullptr ? step.dh : projection->dh;
  for (int& known : dh.known) known = 0;
  for (int64_t i = order.steps(); i-- > 0;) {
    go_to(step, order, i);
    for (int d = 0; d < step.sequence.directions; ++d) step.before[d] = order.rows(d, i - 1);
    if (projection == nullptr) {
      find_grad_output(step, order, i, dense, grad_output_step);
    } else {
      go_to(*projection, order, i);
      find_grad_output(*projection, order, i, dense, grad_output_step);
      machine.launch(*projection);
      machine.multiply(StepProduct::kProjection, projection->step);
      for (int d = 0; d < step.sequence.directions; ++d) step.dh.known[d] = step.step[d].active;
    }
    machine.launch(step);
    machine.multiply(StepProduct::kRecurrent, step.step);
    for (int d = 0; d < step.sequence.directions; ++d) dh.known[d] = step.step[d].active;
  }
  // A step without active rows: every row hands on what it has.
  const StepRows none{0, 0};
  if (projection == nullptr) {
    std::fill(std::begin(step.step), std::end(step.step), none);
    machine.launch(step);
  } else {
    std::fill(std::begin(projection->step), std::end(projection->step), none);
    machine.launch(*projection);
  }
}

}  // namespace rnnkernels::cuda

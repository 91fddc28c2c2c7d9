// A C interface to the kernels of one cell, RNNKERNELS_CELL_KERNELS: dense, one direction, float64, no threads. Not a test by
// itself: tests/test_extending.py compiles it with the code of docs/extending.md, beside a copy of csrc.
#include <cstddef>
#include <vector>

#include "csrc/cpu/kernels.h"

namespace rnnkernels::cpu::baseline {
extern const CellKernels RNNKERNELS_CELL_KERNELS;
}

using namespace rnnkernels::cpu;

namespace {

const CellKernels& cell = baseline::RNNKERNELS_CELL_KERNELS;

void run(void*, int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count; ++i) task(context, i);
}
const Parallel kAlone{1, run, nullptr};

// Aligned, and full of NaN.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : memory_(std::size_t(bytes + kWorkspaceAlignment), char(0xff)) {}
  void* data() {
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    return memory_.data() + (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
  }

 private:
  std::vector<char> memory_;
};

// sizes: T, N, I, H
Layer layer_of(const int64_t* sizes) {
  return {Dtype::kFloat64, sizes[0], sizes[1], sizes[0] * sizes[1], nullptr, sizes[2], sizes[3], sizes[3], 1, true, false};
}

}  // namespace

extern "C" void forward(const int64_t* sizes, const double* x, const double* h0, const double* c0, double** w,
                        double* output, double* h_n, double* c_n, double* gates, double* cells) {
  const Layer layer = layer_of(sizes);
  const ForwardArguments arguments{{x, layer.batch * layer.input_size, layer.input_size}, h0, c0,
                                   {{w[0], w[1], w[2], w[3], nullptr}, {}}, output, h_n, c_n, gates, cells};
  Workspace workspace(cell.forward_workspace(layer, true, 1));
  cell.forward(layer, arguments, workspace.data(), kAlone);
}

extern "C" void backward(const int64_t* sizes, const double* grad_output, const double* x, const double* h0, double** w,
                         const double* output, const double* gates, double* grad_x, double* grad_h0, double** grad_w) {
  const Layer layer = layer_of(sizes);
  BackwardArguments arguments{};
  arguments.grad_output = {grad_output, layer.batch * layer.hidden_size, layer.hidden_size};
  arguments.input = {x, layer.batch * layer.input_size, layer.input_size};
  arguments.h0 = h0;
  arguments.weights[0] = {w[0], w[1], w[2], w[3], nullptr};
  arguments.output = output;
  arguments.gates = gates;
  arguments.grad_input = grad_x;
  arguments.grad_h0 = grad_h0;
  arguments.needs_weights = true;
  arguments.grad_weights[0] = {grad_w[0], grad_w[1], grad_w[2], grad_w[3], nullptr};
  Workspace workspace(cell.backward_workspace(layer, true, true, 1));
  cell.backward(layer, arguments, workspace.data(), kAlone);
}

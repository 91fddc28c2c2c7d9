// One step at a time through a stack of LSTM or GRU layers: weights packed once, states kept between calls.
//
// Sizes: N batch rows, L layers, I input size, H hidden size, P state size (H without projection), G gates. S is the
// storage type named by dtype, C the type computed in and states are held in: double for double, otherwise float.
#pragma once

#include <memory>
#include <new>

#include "kernels.h"

namespace rnnkernels::cpu {

struct StreamShape {
  bool lstm;              // otherwise GRU
  Dtype dtype;            // S: of inputs, outputs and of the parameters that are handed over
  bool bfloat16_weights;  // keep matrices in bfloat16, half the memory to read per step; S is float or bfloat16
  int64_t batch;          // N
  int64_t input_size;     // I
  int64_t hidden_size;    // H
  int64_t state_size;     // P
  int layers;             // L
  bool has_projection;    // LSTM only
};

// What one instruction set provides for one cell and way to keep weights. `memory` is memory_size(shape) bytes from an
// address that is a multiple of kWorkspaceAlignment; create() is called on it first, and it is never copied.
struct StreamKernels {
  int64_t (*memory_size)(const StreamShape&);
  void (*create)(const StreamShape&, void* memory);
  void (*load_weights)(void* memory, int layer, const Weights&);
  void (*step)(void* memory, const void* x, int64_t x_stride, void* output, int64_t output_stride, const Parallel&);
  void (*read_state)(const void* memory, void* h, void* c);
  void (*write_state)(void* memory, const void* h, const void* c);
  void (*reset)(void* memory, int64_t row);
};

struct StreamTable {
  StreamKernels float_weights, double_weights, bfloat16_weights;
};

// A stack's packed weights and states. Not to be used by two threads at once; nothing but the constructor allocates.
class Stream {
 public:
  // Zero states; weights are to be loaded before the first step. Throws what chosen_isa() throws, std::bad_alloc, or
  // std::invalid_argument for a shape that makes no sense.
  explicit Stream(const StreamShape& shape);
  Stream(Stream&&) = delete;

  const StreamShape& shape() const { return shape_; }
  // Multiply-adds of one step.
  int64_t work() const;

  // Packs one layer's parameters (those of layer 0: w_ih (G*H, I), above: (G*H, P)); nothing is kept of the pointers.
  void load_weights(int layer, const Weights& weights) { kernels_.load_weights(memory(), layer, weights); }

  // One step of all layers. x: N rows of I elements S, x_stride apart; output: N rows of P elements S, output_stride
  // apart. The input may be overwritten by the output. The pool is only used when a layer is large.
  void step(const void* x, int64_t x_stride, void* output, int64_t output_stride, const Parallel& pool) {
    kernels_.step(memory(), x, x_stride, output, output_stride, pool);
  }

  // h: (L, N, P) C and, for an LSTM, c: (L, N, H) C, contiguous.
  void read_state(void* h, void* c) const { kernels_.read_state(memory(), h, c); }
  void write_state(const void* h, const void* c) { kernels_.write_state(memory(), h, c); }
  // Zeros the states of one batch row.
  void reset(int64_t row) { kernels_.reset(memory(), row); }

 private:
  struct Free {
    std::align_val_t alignment;
    void operator()(void* memory) const { ::operator delete(memory, alignment); }
  };

  void* memory() const { return memory_.get(); }

  StreamShape shape_;
  StreamKernels kernels_;
  std::unique_ptr<void, Free> memory_;
};

}  // namespace rnnkernels::cpu

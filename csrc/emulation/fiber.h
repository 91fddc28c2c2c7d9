// A stack of its own that can be left and entered again, known to the sanitizers.
#pragma once

#include <ucontext.h>

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The runtime itself is never compiled with -fsanitize=thread (its bookkeeping is shared by all fibers without any
// synchronisation); RNNKERNELS_EMULATION_TSAN says that the kernels are.
#if defined(RNNKERNELS_EMULATION_TSAN)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_write_range(void* address, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace rnnkernels::emulation {

// A thread as ThreadSanitizer sees it, and the happens-before edges between them.
#if defined(RNNKERNELS_EMULATION_TSAN)
class Identity {
 public:
  static Identity create() { return Identity(__tsan_create_fiber(0)); }
  static Identity current() { return Identity(__tsan_get_current_fiber()); }
  void destroy() { __tsan_destroy_fiber(handle_); }
  // Without the flag, switching itself would order the two fibers' accesses.
  void enter() const { __tsan_switch_to_fiber(handle_, kNoSynchronisation); }

 private:
  static constexpr unsigned kNoSynchronisation = 1;
  explicit Identity(void* handle) : handle_(handle) {}
  void* handle_;
};
inline void acquire(void* address) { __tsan_acquire(address); }
inline void release(void* address) { __tsan_release(address); }
inline void announce_write(void* address, size_t bytes) { __tsan_write_range(address, bytes); }

// While one lives in a fiber, its accesses are the runtime's own: allocations and copies would be seen otherwise.
class Bookkeeping {
 public:
  Bookkeeping() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Bookkeeping() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
  Bookkeeping(const Bookkeeping&) = delete;
  Bookkeeping& operator=(const Bookkeeping&) = delete;
};
#else
class Identity {
 public:
  static Identity create() { return {}; }
  static Identity current() { return {}; }
  void destroy() {}
  void enter() const {}
};
inline void acquire(void*) {}
inline void release(void*) {}
inline void announce_write(void*, size_t) {}
struct Bookkeeping {
  Bookkeeping() {}
};
#endif

// Switching between contexts, telling AddressSanitizer which stack is in use.
class Context {
 public:
  // The calling thread's own.
  Context() = default;
  // One that runs entry() on the given stack when first switched to; entry never returns.
  void prepare(void* stack, size_t bytes, void (*entry)()) {
    stack_ = stack;
    bytes_ = bytes;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  static void change(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.fake_stack_, to.stack_, to.bytes_);
#endif
    swapcontext(&from.context_, &to.context_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
  }

  // To be called first thing in entry(): `from` is the context that switched here for the first time.
  static void entered(Context& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.stack_, &from.bytes_);
#else
    (void)from;
#endif
  }

 private:
  ucontext_t context_;
  const void* stack_ = nullptr;
  size_t bytes_ = 0;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
#endif
};

}  // namespace rnnkernels::emulation

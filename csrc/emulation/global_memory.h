// Words of global memory that CTAs write and read while all of them run: a store arrives some time later, each of its words
// of 4 bytes by itself and in no order with others; and a load may find what a word was before, unless the thread knows
// better. It does when it has seen the newer value itself, or when the writer's CTA, after a barrier that followed the store,
// released something that the thread, or whom it met at a barrier, has acquired.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

namespace rnnkernels::emulation {

// By CTA: its stores before this many of its barriers have happened before.
using Knowledge = std::vector<unsigned>;
void join(Knowledge& knowledge, const Knowledge& other);

// What one thread knows and has done.
struct View {
  size_t cta = 0;         // whose barriers order its stores
  unsigned barriers = 0;  // of the whole CTA that it has passed
  Knowledge known;
  std::unordered_map<const uint32_t*, int64_t> seen;  // the arrival whose value it has read
};

class GlobalMemory {
 public:
  void store(View& writer, uint32_t* word, uint32_t value);
  // older: the word's previous value, where the reader may still find that.
  uint32_t load(View& reader, const uint32_t* word, bool older);

  bool in_flight() const { return !order_.empty(); }
  size_t count() const { return order_.size(); }
  // Lets the word of the index-th store in flight have its next value.
  void deliver(size_t index);

  // Everything `writer` has stored, and its CTA before the last barrier that it passed, arrives before the flag's value does.
  void release(View& writer, uint32_t* flag, uint32_t value);
  uint32_t acquire(View& reader, const uint32_t* flag);

 private:
  struct Pending {
    View* writer;
    unsigned barriers;
    uint32_t value;
  };
  struct History {
    uint32_t previous;
    int64_t arrival;
    size_t cta;         // of its writer,
    unsigned barriers;  // which had passed so many
  };
  void arrive(uint32_t* word, std::deque<Pending>& pending);

  std::unordered_map<uint32_t*, std::deque<Pending>> pending_;  // values of a word arrive in the order they were stored
  std::vector<uint32_t*> order_;                                // a word per store in flight
  std::unordered_map<const uint32_t*, History> history_;
  std::unordered_map<const uint32_t*, Knowledge> released_;  // with a flag's value
  int64_t arrivals_ = 0;
};

}  // namespace rnnkernels::emulation

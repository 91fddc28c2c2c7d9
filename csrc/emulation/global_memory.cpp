#include "global_memory.h"

#include <algorithm>

namespace rnnkernels::emulation {

void join(Knowledge& knowledge, const Knowledge& other) {
  if (knowledge.size() < other.size()) knowledge.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) knowledge[i] = std::max(knowledge[i], other[i]);
}

void GlobalMemory::store(View& writer, uint32_t* word, uint32_t value) {
  pending_[word].push_back({&writer, writer.barriers, value});
  order_.push_back(word);
}

uint32_t GlobalMemory::load(View& reader, const uint32_t* word, bool older) {
  // Its own stores a thread always sees.
  const auto pending = pending_.find(const_cast<uint32_t*>(word));
  if (pending != pending_.end()) {
    for (auto own = pending->second.rbegin(); own != pending->second.rend(); ++own)
      if (own->writer == &reader) return own->value;
  }
  const auto history = history_.find(word);
  if (history == history_.end()) return *word;
  int64_t& seen = reader.seen[word];
  const History& last = history->second;
  const unsigned others = last.cta < reader.known.size() ? reader.known[last.cta] : 0;
  const unsigned known = last.cta == reader.cta ? reader.barriers : others;
  if (older && last.barriers >= known && last.arrival > seen) return last.previous;
  seen = last.arrival;
  return *word;
}

void GlobalMemory::arrive(uint32_t* word, std::deque<Pending>& pending) {
  const Pending store = pending.front();
  pending.pop_front();
  history_[word] = {*word, ++arrivals_, store.writer->cta, store.barriers};
  store.writer->seen[word] = arrivals_;
  *word = store.value;
}

void GlobalMemory::deliver(size_t index) {
  uint32_t* word = order_[index];
  order_[index] = order_.back();
  order_.pop_back();
  const auto found = pending_.find(word);
  arrive(word, found->second);
  if (found->second.empty()) pending_.erase(found);
}

void GlobalMemory::release(View& writer, uint32_t* flag, uint32_t value) {
  const auto before = [&](const Pending& store) {
    return store.writer == &writer || (store.writer->cta == writer.cta && store.barriers < writer.barriers);
  };
  for (auto entry = pending_.begin(); entry != pending_.end();) {
    auto& stores = entry->second;
    const auto last = std::find_if(stores.rbegin(), stores.rend(), before);
    for (auto left = stores.rend() - last; left > 0; --left) {
      arrive(entry->first, stores);
      order_.erase(std::find(order_.begin(), order_.end(), entry->first));
    }
    entry = stores.empty() ? pending_.erase(entry) : std::next(entry);
  }
  Knowledge own(writer.cta + 1);
  own[writer.cta] = writer.barriers;
  join(own, writer.known);
  released_[flag] = std::move(own);
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

uint32_t GlobalMemory::acquire(View& reader, const uint32_t* flag) {
  const uint32_t value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
  const auto released = released_.find(flag);
  if (released != released_.end()) join(reader.known, released->second);
  return value;
}

}  // namespace rnnkernels::emulation

// ONNX Runtime's handles as C++ values: tensors, attributes, scratch memory, status.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "layer.h"
#include "ort_abi.h"

namespace tbn::ort {

// Carries a runtime's own error through our frames up to the C boundary.
struct Failure {
  Status* status;
};

inline void check(Status* status) {
  if (status) throw Failure{status};
}

// Runs `body` so that nothing is thrown past it; `label` names the node in the message.
template <class Body>
Status* guarded(const Api& api, const std::string& label, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const Failure& failure) {
    return failure.status;
  } catch (const InvalidLayer& error) {
    return api.create_status(status_invalid_argument, (label + ": " + error.what()).c_str());
  } catch (const std::bad_alloc&) {
    return api.create_status(status_fail, "ai.tbn: out of memory");
  } catch (const std::exception& error) {
    return api.create_status(status_runtime_exception, error.what());
  } catch (...) {
    return api.create_status(status_runtime_exception, "ai.tbn: unexpected error");
  }
}

using Shape = std::vector<std::int64_t>;

class Tensor {
 public:
  Tensor() = default;  // an absent optional input
  Tensor(const Api& api, const Value* value);

  explicit operator bool() const { return present_; }
  const Shape& shape() const { return shape_; }
  template <class T>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  bool present_ = false;
  void* data_ = nullptr;
  Shape shape_;
};

Shape shape_of(const Api& api, const TensorInfo* info);

// A node's attributes, read with their types checked.
class Attributes {
 public:
  Attributes(const Api& api, const KernelInfo* info) : api_(api), info_(info) {}

  std::int64_t integer(const char* name) const;  // required
  std::int64_t integer(const char* name, std::int64_t otherwise) const;
  float number(const char* name, float otherwise) const;
  std::string text(const char* name, const char* otherwise) const;
  Shape integers(const char* name) const;  // empty if absent
  std::string node_name() const;

 private:
  bool found(Status* status) const;
  bool exists(const char* name) const;
  [[noreturn]] void wrong_type(const char* name, const char* wanted) const;

  const Api& api_;
  const KernelInfo* info_;
};

// Memory from the session's allocator, given back at the end of the run.
class Scratch {
 public:
  Scratch(const Api& api, const KernelContext* context);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // `count` pieces of `bytes` bytes, aligned to Carver::alignment.
  void* take(std::int64_t count, std::int64_t bytes);

 private:
  const Api& api_;
  Allocator* allocator_ = nullptr;
  std::vector<void*> blocks_;
};

// Calls body(i) for i in [0, count) on the session's thread pool.
template <class Body>
void parallel(const Api& api, const KernelContext* context, std::int64_t count, const Body& body) {
  const auto call = [](void* data, std::size_t i) {
    (*static_cast<const Body*>(data))(static_cast<std::int64_t>(i));
  };
  if (count == 1) return body(0);
  check(api.parallel_for(context, call, static_cast<std::size_t>(count), 0,
                         const_cast<Body*>(&body)));
}

}  // namespace tbn::ort

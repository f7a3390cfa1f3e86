#include "ort_node.h"

namespace tbn::ort {

Shape shape_of(const Api& api, const TensorInfo* info) {
  std::size_t rank = 0;
  check(api.dimension_count(info, &rank));
  Shape shape(rank);
  check(api.dimensions(info, shape.data(), rank));
  return shape;
}

Tensor::Tensor(const Api& api, const Value* value) {
  if (!value) return;
  TensorInfo* info = nullptr;
  check(api.tensor_info(value, &info));
  const struct Release {
    const Api& api;
    TensorInfo* info;
    ~Release() { api.release_tensor_info(info); }
  } release{api, info};
  shape_ = shape_of(api, info);
  check(api.tensor_data(const_cast<Value*>(value), &data_));
  present_ = true;
}

bool Attributes::found(Status* status) const {
  if (!status) return true;
  api_.release_status(status);
  return false;
}

bool Attributes::exists(const char* name) const {
  std::int64_t integer_value = 0;
  float float_value = 0;
  std::size_t length = 0;
  return found(api_.attribute_int64(info_, name, &integer_value)) ||
         found(api_.attribute_float(info_, name, &float_value)) ||
         found(api_.attribute_text(info_, name, nullptr, &length)) ||
         (found(api_.attribute_int64s(info_, name, nullptr, &length)) && length > 0);
}

void Attributes::wrong_type(const char* name, const char* wanted) const {
  throw InvalidLayer(std::string("attribute ") + name + " must be " + wanted);
}

std::int64_t Attributes::integer(const char* name) const {
  std::int64_t value = 0;
  if (found(api_.attribute_int64(info_, name, &value))) return value;
  if (exists(name)) wrong_type(name, "an integer");
  throw InvalidLayer(std::string("attribute ") + name + " is missing; it is required");
}

std::int64_t Attributes::integer(const char* name, std::int64_t otherwise) const {
  return exists(name) ? integer(name) : otherwise;
}

float Attributes::number(const char* name, float otherwise) const {
  float value = 0;
  if (found(api_.attribute_float(info_, name, &value))) return value;
  if (exists(name)) wrong_type(name, "a float");
  return otherwise;
}

std::string Attributes::text(const char* name, const char* otherwise) const {
  std::size_t length = 0;
  if (!found(api_.attribute_text(info_, name, nullptr, &length))) {
    if (exists(name)) wrong_type(name, "a string");
    return otherwise;
  }
  std::string value(length, '\0');
  check(api_.attribute_text(info_, name, value.data(), &length));
  return value.c_str();
}

Shape Attributes::integers(const char* name) const {
  std::size_t length = 0;
  if (!found(api_.attribute_int64s(info_, name, nullptr, &length)) || length == 0) {
    if (exists(name)) wrong_type(name, "a list of integers");
    return {};
  }
  Shape values(length);
  check(api_.attribute_int64s(info_, name, values.data(), &length));
  return values;
}

std::string Attributes::node_name() const {
  std::size_t length = 0;
  if (!found(api_.node_name(info_, nullptr, &length))) return {};
  std::string name(length, '\0');
  if (!found(api_.node_name(info_, name.data(), &length))) return {};
  return name.c_str();
}

Scratch::Scratch(const Api& api, const KernelContext* context) : api_(api) {
  Allocator* process_wide = nullptr;
  check(api.default_allocator(&process_wide));
  check(api.context_allocator(context, process_wide->info(process_wide), &allocator_));
}

Scratch::~Scratch() {
  for (void* block : blocks_) allocator_->free(allocator_, block);
  api_.release_allocator(allocator_);
}

void* Scratch::take(std::int64_t count, std::int64_t bytes) {
  std::int64_t padded = 0;
  if (__builtin_mul_overflow(count, bytes, &padded) ||
      __builtin_add_overflow(padded, Carver::alignment, &padded)) {
    throw std::bad_alloc();
  }
  blocks_.reserve(blocks_.size() + 1);
  void* block = allocator_->allocate(allocator_, static_cast<std::size_t>(padded));
  if (!block) throw std::bad_alloc();
  blocks_.push_back(block);
  const auto address = reinterpret_cast<std::uintptr_t>(block);
  const auto alignment = static_cast<std::uintptr_t>(Carver::alignment);
  return reinterpret_cast<void*>((address + alignment - 1) / alignment * alignment);
}

}  // namespace tbn::ort

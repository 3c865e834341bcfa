// Plays MindSpore's part in a call of an ahead-of-time operator, for a Python program that has no
// MindSpore: it owns the attribute object that csrc/aot/aot_extra.h declares, and turns the
// exceptions that operators throw into messages. Built by aot.py.
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>

#include "aot/aot_extra.h"

namespace {

using Shapes = std::vector<std::vector<int64_t>>;
using Init = int (*)(int*, int64_t**, const char**, AotExtra*);
using InferShape = Shapes (*)(int*, int64_t**, AotExtra*);
using Run = int (*)(int, void**, int*, int64_t**, const char**, void*, void*);

template <class T>
using Attributes = std::map<std::string, T>;

class Extra : public AotExtra {
 public:
  ~Extra() override { delete kernel_data(); }
  bool HasAttr(std::string name) override {
    return bools.count(name) + floats.count(name) + strings.count(name) + lists.count(name) > 0;
  }

  Attributes<bool> bools;
  Attributes<float> floats;
  Attributes<std::string> strings;
  Attributes<std::vector<float>> lists;

 private:
  // at() throws when an operator asks for an attribute that was not given.
  bool GetAttrBool(std::string name) override { return bools.at(name); }
  float GetAttrFloat(std::string name) override { return floats.at(name); }
  std::string GetAttrStr(std::string name) override { return strings.at(name); }
  std::vector<float> GetAttrFloatVec(std::string name) override { return lists.at(name); }
  // No operator here has attributes of these types.
  int64_t GetAttrInt(std::string) override { return 0; }
  std::vector<int64_t> GetAttrIntVec(std::string) override { return {}; }
  std::vector<std::vector<int64_t>> GetAttrInt2DVec(std::string) override { return {}; }
  std::vector<std::vector<float>> GetAttrFloat2DVec(std::string) override { return {}; }
};

// What `call` returns; -1 and its words when it throws.
template <class Call>
int guarded(char* message, int size, const Call& call) {
  try {
    return call();
  } catch (const std::exception& error) {
    snprintf(message, static_cast<size_t>(size), "%s", error.what());
  }
  return -1;
}

}  // namespace

extern "C" {

Extra* extra_new() { return new Extra; }
void extra_delete(Extra* extra) { delete extra; }
void extra_set_bool(Extra* extra, const char* name, int value) { extra->bools[name] = value != 0; }
void extra_set_float(Extra* extra, const char* name, float value) { extra->floats[name] = value; }
void extra_set_string(Extra* extra, const char* name, const char* value) {
  extra->strings[name] = value;
}
void extra_set_floats(Extra* extra, const char* name, const float* values, int count) {
  extra->lists[name].assign(values, values + count);
}

int aot_init(void* symbol, Extra* extra, char* message, int size) {
  return guarded(message, size,
                 [&] { return reinterpret_cast<Init>(symbol)(nullptr, nullptr, nullptr, extra); });
}

// The number of outputs; their ranks, and their sizes one after the other.
int aot_infer_shape(void* symbol, int* ranks, int64_t** shapes, Extra* extra, int* out_ranks,
                    int64_t* out_sizes, char* message, int size) {
  return guarded(message, size, [&] {
    const Shapes result = reinterpret_cast<InferShape>(symbol)(ranks, shapes, extra);
    for (const auto& shape : result) {
      *out_ranks++ = static_cast<int>(shape.size());
      for (const int64_t length : shape) *out_sizes++ = length;
    }
    return static_cast<int>(result.size());
  });
}

int aot_run(void* symbol, int count, void** data, int* ranks, int64_t** shapes, const char** dtypes,
            void* stream, Extra* extra, char* message, int size) {
  return guarded(message, size, [&] {
    // MindSpore passes the object itself as a void pointer.
    return reinterpret_cast<Run>(symbol)(count, data, ranks, shapes, dtypes, stream,
                                         static_cast<AotExtra*>(extra));
  });
}

}  // extern "C"

// The object through which MindSpore hands attributes to an ahead-of-time Custom operator, declared
// just far enough to call it.
//
// MindSpore builds the real object and passes a pointer; what must agree is the order of the
// virtual functions, the two data members after them, and the string ABI: MindSpore is built with
// the old one, so every file that includes this header is compiled with -D_GLIBCXX_USE_CXX11_ABI=0.
// Declaring it here keeps MindSpore's headers out of the build.
#ifndef ALIBI_AOT_EXTRA_H_
#define ALIBI_AOT_EXTRA_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#if !defined(_GLIBCXX_USE_CXX11_ABI) || _GLIBCXX_USE_CXX11_ABI != 0
#error "compile this file with -D_GLIBCXX_USE_CXX11_ABI=0: strings cross the boundary to MindSpore"
#endif

// What an operator keeps between Init and its calls. MindSpore deletes it through this destructor.
class AotKernelData {
 public:
  virtual ~AotKernelData() = default;
};

class AotExtra {
 public:
  virtual ~AotExtra() = default;
  virtual bool HasAttr(std::string name) = 0;

  bool get_bool(const char* name) { return GetAttrBool(name); }
  float get_float(const char* name) { return GetAttrFloat(name); }
  std::string get_string(const char* name) { return GetAttrStr(name); }
  std::vector<float> get_floats(const char* name) { return GetAttrFloatVec(name); }

  void set_kernel_data(AotKernelData* data) { kernel_data_ = data; }
  const AotKernelData* kernel_data() const { return kernel_data_; }

 private:
  virtual bool GetAttrBool(std::string name) = 0;
  virtual int64_t GetAttrInt(std::string name) = 0;
  virtual float GetAttrFloat(std::string name) = 0;
  virtual std::string GetAttrStr(std::string name) = 0;
  virtual std::vector<int64_t> GetAttrIntVec(std::string name) = 0;
  virtual std::vector<float> GetAttrFloatVec(std::string name) = 0;
  virtual std::vector<std::vector<int64_t>> GetAttrInt2DVec(std::string name) = 0;
  virtual std::vector<std::vector<float>> GetAttrFloat2DVec(std::string name) = 0;

  // Read by MindSpore; unused here, because Init does not know dynamic shapes.
  std::vector<size_t> workspace_;
  AotKernelData* kernel_data_ = nullptr;
};

#endif  // ALIBI_AOT_EXTRA_H_

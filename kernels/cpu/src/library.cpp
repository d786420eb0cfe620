// C++ twins of kernels/reference.py for CPU tensors, compiled at first use by ../build.py: plain C ABI, no torch headers.
//
// One translation unit: how the compiler inlines and rounds must not depend on how the sources are cut.

#include "topm.cpp"
#include "lookup.cpp"
#include "cross_entropy.cpp"
#include "grouped_mm.cpp"
#include "rms_norm.cpp"
#include "linear.cpp"

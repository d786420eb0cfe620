// C++ twins of kernels/reference.py for CPU tensors, compiled at first use by ../build.py, with a plain C ABI.
//
// One translation unit: how the compiler inlines and rounds must not depend on how the sources are cut.

#include "topm.cpp"
#include "lookup.cpp"
#include "cross_entropy.cpp"
#include "experts.cpp"
#include "attention.cpp"
#include "rows.cpp"
#include "linear.cpp"

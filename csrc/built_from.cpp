// Alone in its file: setup.py gives this one the two macros, which change with every edit of csrc/.

#include "built_from.h"

#define PYENC_TEXT_OF(x) #x
#define PYENC_TEXT(x) PYENC_TEXT_OF(x)

namespace pyenc {

const char* built_version() { return PYENC_TEXT(PYENC_VERSION); }
const char* built_sources() { return PYENC_TEXT(PYENC_SOURCES); }

}  // namespace pyenc

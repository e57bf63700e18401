// What this extension was built from, so that the Python around it can tell a stale one.
#pragma once

namespace pyenc {

// The version of the package at the time.
const char* built_version();

// The digest of csrc/ at the time; pyenc/ops/extension.py says how it is taken.
const char* built_sources();

}  // namespace pyenc

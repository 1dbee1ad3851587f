# Sourced by sanitize.sh and fuzz.sh, from the root of the checkout: compiles the kernels with the address and
# undefined-behaviour sanitizers in a copy of the tree, so that the library in use stays what it is, and goes
# there with the environment that Python needs to load them. What is compiled is kept for the next time.
#
#   VENV  the virtual environment (.venv)
VENV=$(realpath "${VENV:-.venv}")
COPY=build/sanitize
# float-cast-overflow is in neither group: coordinates become indices by such casts.
FLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all'

mkdir -p "$COPY"
rm -rf "$COPY"/roi_plugins "$COPY"/tests "$COPY"/report.*
cp -rp roi_plugins tests setup.py setup.cfg pyproject.toml README.md LICENSE "$COPY"
cd "$COPY"
rm -f roi_plugins/ops/_C.so

echo "building the op with sanitizers (log: $COPY/build.log)"
export PATH="$VENV/bin:$PATH" ROI_PLUGINS_CUDA=0 ROI_PLUGINS_REQUIRE_EXTENSION=1
if ! ROI_PLUGINS_CXXFLAGS=$FLAGS LDFLAGS=$FLAGS \
  python setup.py build_ext --inplace >build.log 2>&1; then
  tail -n 20 build.log >&2
  exit 1
fi
if ! nm -D roi_plugins/ops/_C.so | grep __asan_report >/dev/null; then  # -q would end nm early
  echo "$COPY/roi_plugins/ops/_C.so was built without the sanitizers; see ROI_PLUGINS_CXXFLAGS in setup.py" >&2
  exit 1
fi

# The CUDA kernels' source, which one of the tests compiles as C++, gets the same flags.
printf '#!/bin/sh\nexec %s %s "$@"\n' "${CXX:-c++}" "$FLAGS" >c++
chmod +x c++
export CXX=$PWD/c++

library() { "$CXX" -print-file-name="$1"; }
# Python itself is not instrumented: the runtime must be there before it, and before it the C++ library's
# exceptions, which it wraps.
LD_PRELOAD="$(library libasan.so) $(library libubsan.so) $(library libstdc++.so)"
# Leaks: Python frees little at its end. Fresh memory is filled with NaN, so that reading it shows. A report
# goes to a file, because pytest holds what a dying test wrote.
ASAN_OPTIONS=detect_leaks=0:malloc_fill_byte=255:max_malloc_fill_size=1073741824:log_path=$PWD/report
UBSAN_OPTIONS=print_stacktrace=1:log_path=$PWD/report
export LD_PRELOAD ASAN_OPTIONS UBSAN_OPTIONS PYTHONPATH=$PWD OMP_NUM_THREADS=1

# Runs a command, and shows what the sanitizers found if it fails.
sanitized() {
  "$@" && return
  cat report.* 2>/dev/null >&2
  return 1
}

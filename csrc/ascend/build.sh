#!/usr/bin/env bash
# Builds the Ascend ops with CANN's own custom-op project and leaves one installable package:
#
#   source <CANN>/set_env.sh
#   csrc/ascend/build.sh [OUTPUT_DIRECTORY [COMPUTE_UNIT]]      default: build/ascend, ascend910b
#   OUTPUT_DIRECTORY/alibi_ascend.run                           installs the ops
#
# msopgen makes an empty project from ops.json (names only); the sources here replace what it generated.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
output=${1:-$here/../../build/ascend}
unit=${2:-ascend910b}

die() {
  echo "build.sh: $1" >&2
  exit 1
}

[ -n "${ASCEND_HOME_PATH:-}" ] || die "ASCEND_HOME_PATH is not set: install the CANN toolkit (8.1 or later) and 'source <CANN>/set_env.sh' first"
[ -d "$ASCEND_HOME_PATH" ] || die "ASCEND_HOME_PATH is '$ASCEND_HOME_PATH', which is no directory: source set_env.sh of an installed CANN toolkit"
msopgen=$(command -v msopgen || true)
[ -n "$msopgen" ] || msopgen=$ASCEND_HOME_PATH/python/site-packages/bin/msopgen
[ -x "$msopgen" ] || die "msopgen was not found on PATH or in \$ASCEND_HOME_PATH/python/site-packages/bin: install the CANN toolkit package, not only the runtime"

mkdir -p "$output"
output=$(cd "$output" && pwd)
project=$output/project
rm -rf "$project"
"$msopgen" gen -i "$here/ops.json" -c "ai_core-$unit" -lan cpp -out "$project"

rm -f "$project"/op_host/*.cpp "$project"/op_host/*.h "$project"/op_kernel/*.cpp "$project"/op_kernel/*.h
cp "$here"/op_host/*.cpp "$here"/op_host/*.h "$here/tiling.h" "$project/op_host/"
cp "$here"/op_kernel/*.cpp "$here"/op_kernel/*.h "$here/tiling.h" "$project/op_kernel/"

# The kernels order their pipes themselves.
cmake_lists=$project/op_kernel/CMakeLists.txt
{ echo 'add_ops_compile_options(ALL OPTIONS --cce-auto-sync=off)'; cat "$cmake_lists"; } > "$cmake_lists.new"
mv "$cmake_lists.new" "$cmake_lists"

python3 - "$project/CMakePresets.json" "$ASCEND_HOME_PATH" <<'PY'
import json
import sys

path, cann = sys.argv[1:]
with open(path) as file:
    presets = json.load(file)
for preset in presets["configurePresets"]:
    preset["cacheVariables"]["ASCEND_CANN_PACKAGE_PATH"]["value"] = cann
    preset["cacheVariables"]["vendor_name"]["value"] = "alibi"
with open(path, "w") as file:
    json.dump(presets, file, indent=4)
PY

(cd "$project" && bash build.sh)
package=$(find "$project/build_out" -maxdepth 1 -name '*.run' | head -n 1)
[ -n "$package" ] || die "CANN's build left no package in $project/build_out: its messages above say why"
cp "$package" "$output/alibi_ascend.run"
echo "built $output/alibi_ascend.run; run it to install the ops"

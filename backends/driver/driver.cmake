# SPDX-License-Identifier: Apache-2.0
#
# Included by the CMakeLists.txt of each backend over a driver API (CUDA, HIP); the first one brings the shared part in.
if(NOT TARGET moba_driver)
  set(folder "${PROJECT_SOURCE_DIR}/backends/driver")
  moba_add_objects(moba_driver "${folder}/errors.c" "${folder}/memory.c" "${folder}/simt.c")
endif()

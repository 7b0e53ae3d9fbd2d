# SPDX-License-Identifier: Apache-2.0
#
# Included by the CMakeLists.txt of each backend that uses generated kernels; the first one brings codegen/ in.
# Afterwards MOBA_SIMT_DIR is where the generated files are and MOBA_SIMT_INSTANCES lists the instances.
get_property(entered GLOBAL PROPERTY MOBA_SIMT_DIR)
if(NOT entered)
  add_subdirectory("${PROJECT_SOURCE_DIR}/codegen" "${PROJECT_BINARY_DIR}/codegen")
endif()
get_property(MOBA_SIMT_DIR GLOBAL PROPERTY MOBA_SIMT_DIR)
get_property(MOBA_SIMT_INSTANCES GLOBAL PROPERTY MOBA_SIMT_INSTANCES)
get_property(MOBA_SIMT_KERNELS GLOBAL PROPERTY MOBA_SIMT_KERNELS)

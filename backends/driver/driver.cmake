# SPDX-License-Identifier: Apache-2.0
#
# Included by the CMakeLists.txt of each backend over a driver API (CUDA, HIP); the first one brings the shared part in.
# Afterwards MOBA_MATRIX_SOURCES is where the kernels on matrix cores are, MOBA_MATRIX_DIR where their texts are.
include("${PROJECT_SOURCE_DIR}/codegen/codegen.cmake")
set(MOBA_MATRIX_SOURCES "${PROJECT_SOURCE_DIR}/backends/hip/kernels")
set(MOBA_MATRIX_DIR "${PROJECT_BINARY_DIR}/codegen/matrix")
if(NOT TARGET moba_driver)
  # One source for MFMA, WMMA and mma.sync; texts and a table of their own, made by mobagen too.
  file(GLOB sources CONFIGURE_DEPENDS "${MOBA_MATRIX_SOURCES}/*.kern")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources})
  file(MAKE_DIRECTORY "${MOBA_MATRIX_DIR}/opencl" "${MOBA_MATRIX_DIR}/glsl" "${MOBA_MATRIX_DIR}/cuda" "${MOBA_MATRIX_DIR}/hip")
  execute_process(COMMAND "${PROJECT_BINARY_DIR}/codegen/mobagen" emit "${PROJECT_SOURCE_DIR}/codegen/dialect" "${MOBA_MATRIX_DIR}" ${sources}
                  RESULT_VARIABLE failed ERROR_VARIABLE why)
  if(failed)
    message(FATAL_ERROR "mobagen: ${why}")
  endif()
  set_property(GLOBAL PROPERTY MOBA_MATRIX_DIR "${MOBA_MATRIX_DIR}")
  set_property(GLOBAL PROPERTY MOBA_HIP_MATRIX_DIR "${MOBA_MATRIX_DIR}")

  # Sources' properties hold in the folder that sets them, so the table is compiled here, by what names it.
  set(table "${MOBA_MATRIX_DIR}/table.c")
  file(CONFIGURE OUTPUT "${table}" CONTENT
    "#define mobai_simt_instances mobai_matrix_instances\n#define mobai_n_simt_instances mobai_n_matrix_instances\n#include \"simt_table.c\"\n")
  set(folder "${PROJECT_SOURCE_DIR}/backends/driver")
  moba_add_objects(moba_driver "${folder}/errors.c" "${folder}/matrix.c" "${folder}/memory.c" "${folder}/simt.c" "${table}")
endif()

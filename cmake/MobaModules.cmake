# SPDX-License-Identifier: Apache-2.0
#
# How the folders of the library join it. A folder compiles its sources into one object library:
#
#   moba_add_objects(moba_cpu cpu.c pool.c ...)
#
# and a GPU backend's folder decides whether it can be built, with exactly one of
#
#   moba_backend_built(cuda)
#   moba_backend_missing(cuda "nvcc was not found; install the CUDA toolkit 12.8 or newer, or set CUDACXX")
#
# core/registry.c includes the generated built_backends.h, which defines MOBAI_HAVE_<NAME> for each built backend and
# MOBAI_WHY_NOT_<NAME>, the reason as a string, for every other one.

define_property(GLOBAL PROPERTY MOBA_OBJECT_LIBRARIES BRIEF_DOCS "object libraries of libmoba")
define_property(GLOBAL PROPERTY MOBA_BACKENDS_BUILT BRIEF_DOCS "names of the backends in this build")
define_property(GLOBAL PROPERTY MOBA_BACKEND_LINES BRIEF_DOCS "text of built_backends.h")

# moba_add_objects(NAME SOURCE...): an object library that becomes part of libmoba.
function(moba_add_objects name)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE Threads::Threads)
  set_property(GLOBAL APPEND PROPERTY MOBA_OBJECT_LIBRARIES ${name})
endfunction()

# moba_backend_built(NAME): backends/NAME is part of this build.
function(moba_backend_built name)
  string(TOUPPER ${name} upper)
  set_property(GLOBAL APPEND PROPERTY MOBA_BACKENDS_BUILT ${name})
  set_property(GLOBAL APPEND_STRING PROPERTY MOBA_BACKEND_LINES "#define MOBAI_HAVE_${upper} 1\n")
endfunction()

# moba_backend_missing(NAME WHY): NAME is left out because of WHY; an error where it was asked for.
function(moba_backend_missing name why)
  string(TOUPPER ${name} upper)
  if(MOBA_${upper} STREQUAL "ON")
    message(FATAL_ERROR "MOBA_${upper}=ON, but ${why}")
  endif()
  set_property(GLOBAL PROPERTY MOBA_WHY_NOT_${upper} "${why}")
  string(REGEX REPLACE "([\\\"])" "\\\\\\1" quoted "${why}")
  set_property(GLOBAL APPEND_STRING PROPERTY MOBA_BACKEND_LINES "#define MOBAI_WHY_NOT_${upper} \"${quoted}\"\n")
endfunction()

# moba_add_backend(NAME): enters backends/NAME, or says why not.
function(moba_add_backend name)
  string(TOUPPER ${name} upper)
  if(MOBA_${upper} STREQUAL "OFF")
    moba_backend_missing(${name} "it was switched off with -DMOBA_${upper}=OFF")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/backends/${name}/CMakeLists.txt")
    add_subdirectory("${PROJECT_SOURCE_DIR}/backends/${name}")
  else()
    moba_backend_missing(${name} "this version of libmoba has no ${name} backend")
  endif()
endfunction()

# moba_print_summary(): one line a backend, the last thing that configuring prints.
function(moba_print_summary)
  get_property(built GLOBAL PROPERTY MOBA_BACKENDS_BUILT)
  foreach(name cpu cuda hip opencl vulkan)
    string(TOUPPER ${name} upper)
    get_property(why GLOBAL PROPERTY MOBA_WHY_NOT_${upper})
    if(name IN_LIST built OR (name STREQUAL "cpu" AND NOT why))
      message(STATUS "moba: ${name}: built in")
    else()
      message(STATUS "moba: ${name}: left out: ${why}")
    endif()
  endforeach()
endfunction()

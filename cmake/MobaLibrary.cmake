# SPDX-License-Identifier: Apache-2.0
#
# The two libraries and what is installed. GPU libraries are opened at run time and never linked.
get_property(modules GLOBAL PROPERTY MOBA_OBJECT_LIBRARIES)
list(TRANSFORM modules REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>" OUTPUT_VARIABLE objects)

# Objects that no compiler of this project makes: paths, each the output of a custom target of the second list.
get_property(external GLOBAL PROPERTY MOBA_EXTERNAL_OBJECTS)
get_property(external_targets GLOBAL PROPERTY MOBA_EXTERNAL_TARGETS)
set_source_files_properties(${external} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)

add_library(moba_shared SHARED ${objects} ${external})
add_library(moba_static STATIC ${objects} ${external})
if(external_targets)
  add_dependencies(moba_shared ${external_targets})
  add_dependencies(moba_static ${external_targets})
endif()
add_library(moba::moba ALIAS moba_shared)
add_library(moba::moba_static ALIAS moba_static)

set_target_properties(moba_shared PROPERTIES
  OUTPUT_NAME moba EXPORT_NAME moba LINKER_LANGUAGE C
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
set_target_properties(moba_static PROPERTIES OUTPUT_NAME moba LINKER_LANGUAGE C)

foreach(library moba_shared moba_static)
  target_include_directories(${library} INTERFACE
    "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
endforeach()
target_link_libraries(moba_shared PRIVATE Threads::Threads ${CMAKE_DL_LIBS} m)
target_link_libraries(moba_static PUBLIC Threads::Threads ${CMAKE_DL_LIBS} m)
if(NOT MOBA_SANITIZE)
  target_link_options(moba_shared PRIVATE -Wl,--no-undefined -Wl,--as-needed)
endif()

include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/moba")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/mobaConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/cmake/mobaConfig.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/cmake/mobaConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
# moba.pc finds its prefix from its own place, so an installed tree may be moved.
file(RELATIVE_PATH MOBA_PC_PREFIX "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
configure_file("${PROJECT_SOURCE_DIR}/cmake/moba.pc.in" "${PROJECT_BINARY_DIR}/cmake/moba.pc" @ONLY)

install(TARGETS moba_shared moba_static EXPORT mobaTargets
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(EXPORT mobaTargets NAMESPACE moba:: DESTINATION "${package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/cmake/mobaConfig.cmake" "${PROJECT_BINARY_DIR}/cmake/mobaConfigVersion.cmake"
  DESTINATION "${package_dir}")
install(FILES "${PROJECT_BINARY_DIR}/cmake/moba.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/moba" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.h")

# Compiles one ISPC source for one target and fails on gathers and scatters: each is a kernel ten times too slow.
# cmake -DISPC=... -DSOURCE=... -DOBJECT=... -DTARGET=... -DDEFINITIONS=A=1,B -P compile_ispc.cmake
string(REPLACE "," ";" definitions "${DEFINITIONS}")
list(TRANSFORM definitions PREPEND "-D")
execute_process(
  COMMAND ${ISPC} ${SOURCE} -o ${OBJECT} --target=${TARGET} --arch=x86-64 --pic -O3 ${definitions}
  RESULT_VARIABLE failed
  ERROR_VARIABLE messages
  OUTPUT_VARIABLE messages)
if(messages)
  message(NOTICE "${messages}")
endif()
if(failed)
  message(FATAL_ERROR "ISPC failed on ${SOURCE} for ${TARGET}")
endif()
if(messages MATCHES "Performance Warning:[^\n]*(Gather|Scatter)")
  file(REMOVE ${OBJECT})
  message(FATAL_ERROR "gather or scatter in ${SOURCE} for ${TARGET}: index as (uniform pointer + offset)[programIndex]")
endif()

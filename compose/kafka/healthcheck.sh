#!/bin/bash
# healthcheck.sh [HOST [PORT]]: exit status 0 when a Kafka broker answers there, which a look at the port would not tell.
#
# Kafka's own tools could ask as well, but each start of a Java machine costs seconds of a core. The question is
# ApiVersions, version 0, which a broker answers as soon as it serves requests: length 10, key 18, version 0, number 1
# and no client id, all big-endian.
set -eu

seconds=15

timeout "$seconds" bash -ec '
    exec 3<>"/dev/tcp/$0/$1"
    printf "\0\0\0\12\0\22\0\0\0\0\0\1\377\377" >&3
    answer=$(head -c 10 <&3 | od -An -v -tx1 | tr -d " \n")
    # After the length: the number of the question, and no error.
    [ "${answer:8}" = 000000010000 ]
' "${1:-kafka}" "${2:-9092}"

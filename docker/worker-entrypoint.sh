#!/bin/sh
# One scan at a time for each device: a machine with more GPUs runs one container for each (docker/gpus.yml).
set -eu
exec celery -A worker.celery_app worker -Q scan.gpu -n "worker@$(hostname)" --loglevel INFO "$@"

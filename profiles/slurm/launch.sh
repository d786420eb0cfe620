#!/usr/bin/env bash
# A training run as a job of Slurm: launch.sh NODES THREADS COMMAND...
#
# On several nodes a torchrun each, which meet on the first one. Told to stop, ahead of the time limit or for another job, the
# trainers save and leave; the job then goes back into the queue, and continues from its checkpoint.
set -u

stopped=143 # 128 + SIGTERM

nodes=$1 threads=$2
shift 2
trap : TERM
if [ "$nodes" = 1 ]; then
    "$@"
else
    # Jobs that share a node may not share a port.
    meet=(--rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 10000))")
    srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpus-per-task "$threads" \
        "$1" -m workflows.launch --nnodes "$nodes" "${meet[@]}" "${@:2}"
fi
code=$?

# Not for a job that its user cancelled, nor for one that Slurm puts back by itself.
if [ $code = $stopped ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    echo "job $SLURM_JOB_ID was told to stop: back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code

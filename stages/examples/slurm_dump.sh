#!/bin/bash
# A dump by 20 jobs, then one job that completes it. In the project's folder, on a disk that all nodes see:
#   array=$(sbatch --parsable slurm_dump.sh main)
#   sbatch --dependency=afterok:$array --wrap "pipeline cache-logits main"
# Jobs that failed run again alone: sbatch --array=3,7 slurm_dump.sh main
#SBATCH --job-name=dump
#SBATCH --array=0-19
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=dump-%A-%a.log

set -euo pipefail

# The length of --array above. SLURM_ARRAY_TASK_COUNT would be less where some jobs run again.
parts=20

# No srun: each job is one process. Killed or requeued, it resumes with its next shard.
exec pipeline cache-logits "${1:?name of a dump}" --shards "$SLURM_ARRAY_TASK_ID/$parts"

#!/bin/bash
# One student per job, then the report:
#   array=$(sbatch --parsable slurm_students.sh)
#   sbatch --dependency=afterok:$array --wrap "pipeline report"
# With --follow behind --dump main, submit it at once: students begin while the dump is being written.
#SBATCH --job-name=students
#SBATCH --array=0-3
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=student-%A-%a.log

set -euo pipefail

# STUDENT RECIPE SEED, as `sweep` of params.yaml lists them; baselines take no dump.
runs=(
  "resnet8 kd 0 --dump main"
  "shufflenet kd 0 --dump main"
  "resnet8 scratch 0"
  "shufflenet scratch 0"
)

# Unquoted, so that the words of a run become arguments. A requeued job resumes from its last state.
exec pipeline train-student ${runs[$SLURM_ARRAY_TASK_ID]}

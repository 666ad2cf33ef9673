"""The study as jobs of a scheduler: what they take, how they depend on each other, how they are handed in.

`resources` knows what is asked of a cluster, `chain` which jobs a configuration needs, `dialects` what Slurm, OpenPBS
and Torque call things, `script` the text of a job, `submission` hands jobs in or runs them here. What the jobs
themselves do is in the shell bodies of the project's folder `jobs/`.
"""

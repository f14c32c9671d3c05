"""`bulkhead up`: the stores, the simulator and the five services as separate processes, supervised.

plan     what is started, on which ports: pure
preflight, lock, workspace     what must hold before anything is started; the data folder
environment     the command and the variables of each process
process, backoff, keeper     one child process; what ends the children when `up` itself was killed
supervisor     start, restart, readiness, drain
display, banner     what the user sees
"""

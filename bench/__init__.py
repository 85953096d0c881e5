"""How fast a deployment is, measured beside what an engineer would use instead, in the same run on the same machine.

``python -m bench`` or ``invoke bench``. Nothing of it is installed with the package. Read downhill::

    __main__     the command line
    run          the rounds: ours and the peers interleaved, every case once a round
    report       the table: ratios with medians and spread, against what is to be reached; docs/performance.md
    ours         a whole workspace, and deployments through the workflow's own functions and through ``tma``
    peers        rsync, a plain Fabric script, and the floor below which nobody gets; their scripts are in scripts/
    breakdown    where the time of one of our deployments goes: every git process, the hottest functions
    sql          migrations, beside dbmate, sqitch, yoyo and one bare client: ``python -m bench.sql``
    servers, delay, tree, timing     throwaway sshd processes; a longer line; the release's files; the stopwatch

Every timed deployment is a real one of a version that no host has had: a host's folder is never put back, and no cache
knows the pair of trees beforehand.
"""

"""From the words that an engineer types to a call, and from its result back to text or JSON.

``words`` reads the words (pure), ``verb`` makes a task of a function and runs it, ``program`` is the console script and
what stock Invoke is given, ``guide`` writes the list of tasks and the help, ``output`` prints, ``bug_report`` keeps the
traceback of what must not happen.
"""

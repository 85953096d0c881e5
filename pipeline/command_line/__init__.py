"""From the words that an engineer types to a call, and from its result back to text or JSON.

``words`` reads the words (pure), ``verb`` runs a function as one of the tasks, ``program`` is the console script,
``invoked`` gives the same tasks to stock Invoke (nothing else here imports it), ``guide`` writes the list of tasks and the
help, ``output`` prints, ``bug_report`` keeps the traceback of what must not happen.
"""

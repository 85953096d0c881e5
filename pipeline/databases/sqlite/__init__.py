"""SQLite: the file lies on the host, and so does the program that works on it; read downhill::

database, troubles      the port; the host's answers as errors
host_scripts, host_backups, host_catalogue, host    sent to the host's python3: they import nothing of this package
                        but one another
"""

"""MariaDB and MySQL; read downhill::

database            the port
run, units          a script statement by statement; what of it commits together
history             the tables, and the guard before each unit
rehearsal, backup   trial runs and restores in the scratch database; backups by mariadb-dump
catalogue, server   what a schema is made of; what the server is and lacks
session             PyMySQL through the tunnel
"""

"""PostgreSQL; read downhill::

database            the port
scripts             whole, large and statement by statement; rehearsals; what a lost connection leaves to be asked
hold                the session's lock, the fence, proxies that pool, old servers, who holds a lock
history             the tables, what guards and checks a script, format 1 → 2
client, session     a way to the server: psql on the host, or libpq through the tunnel
backup, catalogue   backups by the server's own programs; what a schema is made of
programs, statements    those programs on the host; where statements begin
"""

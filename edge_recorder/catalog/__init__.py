"""
The catalog: what this node recorded, in one SQLite file that many recorder processes and one agent share.

    entities.py    what is kept of each fact: the one description
    schema.sql     the tables; triggers.sql the change log's triggers, made from the entities
    statements.sql every other statement, by name
    connection.py  one connection, one owner, commits in groups
    transaction.py one of those commits
    migrate.py     making a catalog, bringing it up to date, and being alone meanwhile
    owed.py        the guarded moves of owed work
    sqlite.py      which SQLite this is, and whether it is safe
"""

"""The durable record of episodes, runs and attempts.

`journal.Journal` opens it; `acceptance` records notifications, `claims` carries runs from due to
finished, `reading` answers questions; `writer` commits many requests at once.
"""

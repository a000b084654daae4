def table(spec): 
    return "\n".join(f"{g.name}: {g.size} x{g.copies} within {g.within} members {g.members} sites {[(s.tensor,s.axis) for s in g.sites][:4]}" for g in spec.groups.values())

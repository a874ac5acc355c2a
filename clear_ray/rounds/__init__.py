"""The law of a run, pure: which queries are granted how much, round by round, and what comes of it.

The law in twenty minutes, in this order:

    batch, states                     what is believed of every query, and where it stands
    clearing, menu                    one round: what is open and what is left -> a price -> grants
    offers, rounds, running           when a round takes place, what it may grant, when a run is over
    learning_offers, stage_sizes, stage_grants
                                      the default: nothing is known, and every answer teaches

While engines run and prompts are read:

    beside, pace, learning_beside     a price while other grants are running
    widening, windowed                a price while prompts are still being read, also of a batch that no machine holds
    widening_learning                 learning while prompts are still being read
    sampled_learning                  learning on a batch that no machine holds

What else a run may want:

    minimum_service                   a short answer for every query
    calls                             prompts that are paid for
    attempts, history, agreement      several answers to one query: what came of them, what ends it, what agreement says
    attempt_offers, attempt_menu, attempt_hull, attempt_price
                                      asked again until it is right: all later attempts in one supply curve
    ballots, vote_menu, group_menu    asked again for a majority, or for a right and a wrong answer
    menu_offers, menu_beliefs, menu_pilot, menu_courses, menu_plans, menu_pricing, menu_votes, menu_service, uniform_menu
                                      several models under one price
"""
